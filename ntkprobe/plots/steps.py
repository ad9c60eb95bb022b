"""The axis of optimiser steps, or of named stages in their place, and what either is called."""

from collections.abc import Hashable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from .style import escaped

LONG = 8  # letters of a name that stands across


def step_axis(ax: Axes, table: pd.DataFrame) -> Axes:
    """Label the horizontal axis: optimiser steps, or the names of stages at their places.

    Args:
        ax: where `table` is drawn against `step`.
        table: its rows; with a column `stage`, these are stages.

    Returns:
        `ax`.
    """
    names = stage_names(table)
    if not names:
        ax.set_xlabel("optimiser step")
        return ax
    places = sorted(names)
    labels = [escaped(names[place]) for place in places]
    tilted = max(map(len, labels)) > LONG or len(labels) > 4
    ax.set_xticks(places, labels, rotation=20 if tilted else 0, ha="right" if tilted else "center")
    ax.tick_params(axis="x", length=0)
    ax.set(xlabel="stage", xlim=(places[0] - 0.25, places[-1] + 0.25))
    return ax


def stage_names(table: pd.DataFrame) -> dict[int, str]:
    """Return the names of the stages in a table by step; empty for the steps of a run."""
    if "stage" not in table:
        return {}
    named = table[["step", "stage"]].dropna().drop_duplicates()
    return {int(step): str(name) for step, name in named.itertuples(index=False, name=None)}


def step_name(table: pd.DataFrame, step: Any) -> str:
    """Return what a step of a table is called: `step 5`, or the name of a stage."""
    return escaped(stage_names(table).get(int(step), f"step {step}"))


def titled(label: str, table: pd.DataFrame, step: Any) -> str:
    """Return the title of a run's panel at one step: `STL, step 5`.

    Args:
        label: of the run.
        table: rows of the run; of a stage, `run` names it already, and in the user's own words.
        step: which is drawn.
    """
    return escaped(str(table["run"].iloc[0])) if stage_names(table) else f"{label}, step {step}"


def template_note(table: pd.DataFrame) -> str:
    """Return a sentence on stages whose prompts had another template than the one before.

    Args:
        table: with `run`, `step`, `stage` and `template`; other tables have no such stages.

    Returns:
        Empty if all have the same.
    """
    if "template" not in table:
        return ""
    rows = table.dropna(subset=["template"]).drop_duplicates(["run", "step"])
    shown: dict[Hashable, Hashable] = dict(zip(rows["stage"], rows["template"], strict=True))
    if len(set(shown.values())) < 2:
        return ""
    told = ", ".join(f"{stage} {template}" for stage, template in shown.items())
    return escaped(
        f"Templates differ ({told}): between such stages a difference mixes the template with "
        "training."
    )
