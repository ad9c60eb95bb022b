"""The axis of optimiser steps, or of named stages in their place, and what either is called."""

from collections.abc import Hashable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from .style import escaped, group_style, in_order

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
        ax.set_xlabel("epoch" if _unit(table) == "epoch" else "optimiser step")
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
    """Return what a step of a table is called: `step 5`, `epoch 5`, or the name of a stage."""
    return escaped(stage_names(table).get(int(step), f"{_unit(table)} {step}"))


def titled(label: str, table: pd.DataFrame, step: Any) -> str:
    """Return the title of a run's panel at one step: `STL, step 5`.

    Args:
        label: of the run.
        table: rows of the run; of a stage, `run` names it already, and in the user's own words.
        step: which is drawn.
    """
    named = bool(stage_names(table))
    return escaped(str(table["run"].iloc[0])) if named else f"{label}, {_unit(table)} {step}"


def _unit(table: pd.DataFrame) -> str:
    """Return what the steps of a run count; `unit` is there where these are epochs."""
    return str(table["unit"].iloc[0]) if "unit" in table and len(table) else "step"


def group_sizes(table: pd.DataFrame) -> str:
    """Return how many prompts each group has: `60 toxic`, `20 to 60 toxic` where rows differ.

    Args:
        table: with `group` and `prompts`.
    """
    sizes = table.groupby("group")["prompts"]
    return ", ".join(
        f"{span(sizes.get_group(group))} {group_style(group).label}"
        for group in in_order(table["group"])
    )


def span(counts: pd.Series) -> str:
    """Return a count, or the least and the largest of several."""
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"


def notes_on_rows(table: pd.DataFrame) -> str:
    """Return sentences on what a reader would not expect of a figure's rows; mostly none.

    Args:
        table: with `template` where there are stages, and `phrases` where others than the paper's
            31 phrases were measured.

    Returns:
        Stages whose prompts had another template than others; which phrases were summed.
    """
    return escaped(" ".join(filter(None, [_on_templates(table), _on_phrases(table)])))


def _on_templates(table: pd.DataFrame) -> str:
    if "template" not in table:
        return ""
    rows = table.dropna(subset=["template"]).drop_duplicates(["run", "step"])
    shown: dict[Hashable, Hashable] = dict(zip(rows["stage"], rows["template"], strict=True))
    if len(set(shown.values())) < 2:
        return ""
    each = ", ".join(f"{stage} {template}" for stage, template in shown.items())
    return (
        f"Templates differ ({each}): between such stages a difference mixes the template with "
        "training."
    )


def _on_phrases(table: pd.DataFrame) -> str:
    if "phrases" not in table:
        return ""
    rows = table.dropna(subset=["phrases"]).drop_duplicates(["run", "phrases"])
    names = list(dict.fromkeys(rows["phrases"]))
    if len(names) < 2:
        return f"Refusal phrases: {names[0]}." if names else ""
    return f"Refusal phrases: {', '.join(f'{r.run} {r.phrases}' for r in rows.itertuples())}."
