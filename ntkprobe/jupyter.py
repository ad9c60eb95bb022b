"""How objects look in Jupyter: tables in which nothing of a prompt is markup, pictures, pages."""

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .errors import UserError
from .storage import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Kept from the notebook's formula renderers: a prompt may hold a dollar sign.
_PLAIN = "tex2jax_ignore mathjax_ignore"


def paragraph(text: str) -> str:
    """Return a paragraph that says `text`, whatever it holds."""
    return f'<p class="{_PLAIN}">{escape(text)}</p>'


def table(frame: "pd.DataFrame", index: bool = True) -> str:
    """Return a table of a frame, its texts escaped and its numbers to three digits.

    Args:
        frame: what to show, all of it.
        index: whether to show its row labels.

    Returns:
        HTML.
    """
    return frame.to_html(
        escape=True, index=index, classes=_PLAIN, na_rep="", float_format="{:.3g}".format
    )


@dataclass(frozen=True)
class Page:
    """A whole HTML page: a file, or shown in a frame of its own.

    Attributes:
        html: all of it.
        title: what the frame is called.
    """

    html: str = field(repr=False)
    title: str = "ntkprobe report"

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the page as a file, whole or not at all.

        Args:
            path: where to; a page that is there is replaced.

        Returns:
            The path.

        Raises:
            UserError: if it cannot be written; what was there is then still there.
        """
        try:
            with replacing(Path(path)) as hidden:
                hidden.write_text(self.html, encoding="utf-8", newline="\n")
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; a page that was there still is"
            ) from error
        return Path(path)

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, as Jupyter shows it."""
        return (
            f'<iframe title="{escape(self.title)}" sandbox="allow-scripts allow-downloads" '
            f'width="100%" height="760" style="border:0" srcdoc="{escape(self.html)}"></iframe>'
        )


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
