"""A measured run in a notebook: a picture of it, and a summary in tables."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .errors import require
from .jupyter import paragraph, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Run = Any
"""A `Trajectory`, which imports this module."""


def drawn(run: Run, ax: "Axes | None", what: str | None) -> "Axes":
    """Return the Axes with lines over the steps (`Trajectory.plot`).

    Args:
        run: a measured run.
        ax: where to; None for a new figure.
        what: `kernel`, `refusal` or `drift`; None for the first that was measured.

    Raises:
        UserError: if that was not measured, or of one prompt only.
    """  # ruff: ignore[docstring-extraneous-exception]
    from .plots.lines import drift_lines, refusal_lines, similarity_lines
    from .plots.style import new_axes

    kinds: dict[str, tuple[Callable[[], pd.DataFrame], Callable[..., Axes]]] = {
        "kernel": (run.group_means, similarity_lines),
        "refusal": (lambda: _first_reduction(run), refusal_lines),
        "drift": (run.drift, drift_lines),
    }
    kind = what or ("kernel" if run.kernel_steps() else "refusal")
    unmeasured = f"no {kind} was measured in {run.folder}: choose kernel, refusal or drift"
    require(kind in kinds, unmeasured)
    rows, draw = kinds[kind]
    found = rows()
    lonely = kind == "kernel" and run.kernel_steps()
    require(not found.empty or bool(lonely), unmeasured)
    require(
        not found.empty,
        f"{run.folder} has no pair of different prompts to draw the kernel of: measure it on more"
        " prompts, into another folder",
    )
    drawn_on = draw(found, new_axes() if ax is None else ax)
    if run.step_unit == "epoch":
        drawn_on.set_xlabel("epoch")
    return drawn_on


def summary(run: Run) -> str:
    """Return a run's steps, prompts and means as HTML."""
    steps, groups = run.steps, run.prompts["group"].value_counts(sort=False)
    described = ", ".join(f"{count} {group}" for group, count in groups.items())
    span = f"{len(steps)} steps, {steps[0]} to {steps[-1]}" if steps else "no steps yet"
    column = "stage" if (names := run.stage_names) else "step"
    if names:
        span = f"stages {', '.join(names[step] for step in steps if step in names)}"
    shown = [paragraph(f"{run.folder}: {span}; prompts: {described}")]
    if run.kernel_steps():
        means = run.group_means(resamples=0)
        pairs = means.assign(pair=means["observed_group"] + " ← " + means["updated_group"])
        wide = pairs.pivot(index="pair", columns=column, values="similarity")
        shown += _titled("Mean similarity, observed ← updated", wide)
    rates = _first_reduction(run).pivot(index="group", columns=column, values="probability")
    return "".join([*shown, *_titled("Mean refusal probability", rates)])


def _titled(title: str, wide: pd.DataFrame) -> list[str]:
    """Return a table of means below its title; nothing where there are none."""
    return [] if wide.empty else [paragraph(title), table(_ends(wide))]


def _first_reduction(run: Run) -> pd.DataFrame:
    """Return the rows of `refusal_means` for the phrases and the sum that were listed first."""
    means = run.refusal_means()
    first = means[["phrase_set", "reduction"]].iloc[:1]
    return means.merge(first, on=["phrase_set", "reduction"])


def _ends(wide: pd.DataFrame, columns: int = 6) -> pd.DataFrame:
    """Return at most so many of a table's columns, the first, the last and some between."""
    return wide.iloc[:, np.unique(np.linspace(0, wide.shape[1] - 1, columns).round().astype(int))]
