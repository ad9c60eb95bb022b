"""A measured run in a notebook: a picture of it, and a summary in tables."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .errors import UserError
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
    """
    from .plots.lines import drift_lines, refusal_lines, similarity_lines
    from .plots.style import new_axes

    kinds: dict[str, tuple[Callable[[], pd.DataFrame], Callable[..., Axes]]] = {
        "kernel": (run.group_means, similarity_lines),
        "refusal": (lambda: _first_reduction(run), refusal_lines),
        "drift": (run.drift, drift_lines),
    }
    kind = what or ("kernel" if run.kernel_steps() else "refusal")
    if kind not in kinds or not (kind == "drift" or _has(run, kind)):
        raise UserError(f"no {kind} was measured in {run.folder}: choose kernel, refusal or drift")
    rows, draw = kinds[kind]
    found = rows()
    if found.empty:
        raise UserError(
            f"{run.folder} has no pair of different prompts to draw the {kind} of: measure it"
            " on more prompts, into another folder"
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
        pairs = means["observed_group"] + " ← " + means["updated_group"]
        wide = means.assign(pair=pairs).pivot(index="pair", columns=column, values="similarity")
        shown += [paragraph("Mean similarity, observed ← updated"), table(_ends(wide))]
    if _has(run, "refusal"):
        rates = _first_reduction(run)
        wide = rates.pivot(index="group", columns=column, values="probability")
        shown += [paragraph("Mean refusal probability"), table(_ends(wide))]
    return "".join(shown)


def _first_reduction(run: Run) -> pd.DataFrame:
    """Return the rows of `refusal_means` for the phrases and the sum that were listed first."""
    means = run.refusal_means()
    first = means[["phrase_set", "reduction"]].iloc[:1]
    return means.merge(first, on=["phrase_set", "reduction"])


def _has(run: Run, kind: str) -> bool:
    """Return whether some step has a kernel, or refusals."""
    return any((run.folder / kind).glob("step-*.parquet"))


def _ends(wide: pd.DataFrame, columns: int = 6) -> pd.DataFrame:
    """Return at most so many of a table's columns, the first, the last and some between."""
    return wide.iloc[:, np.unique(np.linspace(0, wide.shape[1] - 1, columns).round().astype(int))]
