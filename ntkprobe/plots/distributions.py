"""Distributions of values as violins."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes


def spreads(
    table: pd.DataFrame,
    ax: Axes,
    *,
    value: str,
    by: str,
    order: Sequence[str],
    colours: Sequence[str],
) -> Axes:
    """Draw the distribution of `value` for every kind in the column `by`, a violin each.

    The dashes inside are the quartiles; the violins end where the data do.

    Args:
        table: tidy rows with `value` and `by`.
        ax: where to.
        value: the column across.
        by: the column upwards, names as they are to be read.
        order: its values from top to bottom.
        colours: one for each.

    Returns:
        `ax`.
    """
    sns.violinplot(
        table,
        x=value,
        y=by,
        hue=by,
        order=order,
        hue_order=order,
        palette=list(colours),
        inner="quart",
        cut=0,
        density_norm="width",
        linewidth=0.7,
        legend=False,
        ax=ax,
    )
    for violin in ax.collections:
        violin.set_alpha(0.55)  # the quartiles are dark
    ax.set_ylabel("")
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    return ax
