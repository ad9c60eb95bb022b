"""The one picture that a measurement draws of itself; figures of runs are in `ntkprobe.figures`."""

from itertools import groupby

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from ..prompts.prompt_set import PromptSet


def draw_matrix(values: np.ndarray, prompts: PromptSet, ax: Axes | None) -> Axes:
    """Return the Axes with a heat map of an `[n, n]` matrix, its groups marked at the edges."""
    where = plt.subplots(figsize=(5.5, 4.5))[1] if ax is None else ax
    sns.heatmap(values, ax=where, square=True, cmap="Blues", xticklabels=False, yticklabels=False)
    ends = np.cumsum([len(list(same)) for _, same in groupby(p.group for p in prompts)])
    names = [prompts[int(end) - 1].group.replace("_", " ") for end in ends]
    starts = np.concatenate([[0], ends[:-1]])
    where.set_xticks((starts + ends) / 2, names)
    where.set_yticks((starts + ends) / 2, names, rotation=90, va="center")
    where.tick_params(length=0)
    where.hlines(ends[:-1], 0, ends[-1], color="white", linewidth=1)
    where.vlines(ends[:-1], 0, ends[-1], color="white", linewidth=1)
    where.set(xlabel="updated prompt x", ylabel="observed prompt x′")
    return where


def draw_probabilities(table: pd.DataFrame, ax: Axes | None) -> Axes:
    """Return the Axes with every prompt's refusal probability, by group.

    Where some phrases begin with others, their sum may be above 1.
    """
    where = plt.subplots(figsize=(5, 3))[1] if ax is None else ax
    sns.stripplot(table, x="probability", y="group", hue="group", legend=False, ax=where, alpha=0.7)
    most = max(1.0, table["probability"].max())
    where.set(xlabel="probability of a refusal", ylabel="", xlim=(-0.02 * most, 1.02 * most))
    return where
