"""The kernel, refusals, tokens and influences of one measured run as tables and arrays."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from ..figures.measured_tables import (
    influence_rows,
    refusal_probabilities,
    refusal_rates,
    refusal_rows,
)
from ..trajectory import Trajectory

NOT_ANSWERED = 255


def kernel_of(run: Trajectory) -> dict[str, Any] | None:
    """Return the similarities of a run at every step; None where no kernel was measured.

    Args:
        run: a measured run.

    Returns:
        `steps`, `prompts` (their numbers, in the order of the axes), `similarity`
        `[steps, observed, updated]`, `own` `[steps, prompts]` (‖K(x, x)‖_F) and `means`, a row per
        step and ordered pair of groups with its 95 % interval.
    """
    table = run.kernel()
    if table.empty:
        return None
    steps = sorted(int(step) for step in table["step"].unique())
    prompts = sorted({*table["observed"], *table["updated"]})
    similarity = np.full((len(steps), len(prompts), len(prompts)), np.nan, "<f4")
    at = (
        places_in(steps, table["step"]),
        places_in(prompts, table["observed"]),
        places_in(prompts, table["updated"]),
    )
    similarity[at] = table["similarity"]
    same = (table["observed"] == table["updated"]).to_numpy()
    own = np.full((len(steps), len(prompts)), np.nan, "<f4")
    own[at[0][same], at[1][same]] = table.loc[same, "norm"]
    return {
        "steps": steps,
        "prompts": [int(prompt) for prompt in prompts],
        "similarity": similarity,
        "own": own,
        "means": records(run.group_means()),
    }


def refusal_of(run: Trajectory) -> dict[str, Any] | None:
    """Return the refusals of a run at every step; None where none were measured.

    Args:
        run: a measured run.

    Returns:
        `steps`, `reduction` (how phrases were summed, `phrase_set` too), `probability`
        `[steps, prompts]`, `refuses` `[steps, prompts]` (1, 0, or 255 where nothing was generated),
        and for each group and step the means with 95 % intervals, `probabilities` and `rates`,
        which is None where there are no answers.
    """
    try:
        rows = refusal_rows({"run": run})
    except UserError:
        return None
    steps = sorted(int(step) for step in rows["step"].unique())
    count = len(run.prompts)
    at = places_in(steps, rows["step"]), places_in(run.prompts["prompt"], rows["prompt"])
    probability = np.full((len(steps), count), np.nan, "<f4")
    probability[at] = rows["probability"]
    refuses = np.full((len(steps), count), NOT_ANSWERED, np.uint8)
    refuses[at] = rows["refuses"].astype("Float64").fillna(NOT_ANSWERED).to_numpy(np.uint8)
    try:
        rates = records(refusal_rates(rows).drop(columns="run"))
    except UserError:
        rates = None
    return {
        "steps": steps,
        "phrase_set": str(rows["phrase_set"].iloc[0]),
        "reduction": str(rows["reduction"].iloc[0]),
        "probability": probability,
        "refuses": refuses,
        "probabilities": records(refusal_probabilities(rows).drop(columns="run")),
        "rates": rates,
    }


def tokens_of(run: Trajectory, prompts: list[int]) -> dict[str, Any] | None:
    """Return the tokens that the blocks are made of; None where none were kept.

    Args:
        run: a measured run.
        prompts: those of the kernel.

    Returns:
        `steps`, `texts` without repeats, and `codes` `[steps, prompts, ranks]` into them, -1 where
        there is none.
    """
    table = run.tokens()
    if table.empty:
        return None
    codes, texts = pd.factorize(table["text"])
    steps = sorted(int(step) for step in table["step"].unique())
    shape = (len(steps), len(prompts), int(table["rank"].max()) + 1)
    grid = np.full(shape, -1, "<i4")
    place = places_in(prompts, table["prompt"])
    known = place >= 0
    at = places_in(steps, table["step"]), place, table["rank"].to_numpy()
    grid[tuple(index[known] for index in at)] = codes[known]
    return {"steps": steps, "texts": [str(text) for text in texts], "codes": grid}


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


def places_in(values: Iterable[int], wanted: pd.Series) -> np.ndarray:
    """Return the place of each wanted value among distinct ones, -1 where it is not there."""
    return pd.Index(list(values)).get_indexer(pd.Index(wanted))


def records(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a table by column, missing values as None."""
    return {
        str(name): [None if pd.isna(x) else x for x in column.tolist()]
        for name, column in table.items()
    }
