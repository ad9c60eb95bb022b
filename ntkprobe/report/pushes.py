"""The training pairs of largest influence on a prompt's refusal, both signs, at every step."""

from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from ..figures.measured_tables import influence_rows
from ..trajectory import Trajectory

SHOWN = 8
"""Pairs kept for each prompt and step, on either side."""


def pushes_of(run: Trajectory) -> dict[str, Any] | None:
    """Return the strongest influences on each prompt's refusal; None where none were measured.

    Args:
        run: a measured run.

    Returns:
        `steps`, `prompts` (observed), `target`; `pairs` (group, text and response of those that
        occur); `which` `[steps, prompts, 2 SHOWN]`, numbers into `pairs` from the strongest push
        towards refusal to the strongest away, -1 where there is none; `change` of the same shape
        (log P_refuse per unit step of gradient descent); and `groups`, for each step, prompt and
        group of updated pairs the mean change over `pairs` of them.
    """
    try:
        table = influence_rows(run)
    except UserError:
        return None
    table = table[np.isfinite(table["change"])]
    steps = sorted(int(step) for step in table["step"].unique())
    prompts = sorted(int(prompt) for prompt in table["observed"].unique())
    which = np.full((len(steps), len(prompts), 2 * SHOWN), -1, "<i4")
    change = np.full(which.shape, np.nan, "<f4")
    for (step, prompt), rows in table.groupby(["step", "observed"]):
        ends = _ends(rows)
        at = steps.index(step), prompts.index(prompt)
        which[at][: len(ends)], change[at][: len(ends)] = ends["updated"], ends["change"]
    numbers = np.unique(which[which >= 0])
    about = run.updated.set_index("updated").loc[numbers]
    which[which >= 0] = np.searchsorted(numbers, which[which >= 0])
    means = table.groupby(["step", "observed", "updated_group"], as_index=False)["change"].agg(
        ["mean", "size"]
    )
    return {
        "steps": steps,
        "prompts": prompts,
        "target": str(table["target"].iloc[0]),
        "pairs": {name: _texts(about, name) for name in ("group", "text", "response")},
        "which": which,
        "change": change,
        "groups": {str(name): column.tolist() for name, column in means.items()},
    }


def _ends(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the strongest pushes up, then the strongest down, in one descending order."""
    order = rows.sort_values("change", ascending=False)
    if len(order) <= 2 * SHOWN:
        return order
    return pd.concat([order.head(SHOWN), order.tail(SHOWN)])


def _texts(about: pd.DataFrame, name: str) -> list[str]:
    """Return a column as texts, empty where there is none."""
    if name not in about:
        return [""] * len(about)
    return ["" if pd.isna(value) else str(value) for value in about[name]]
