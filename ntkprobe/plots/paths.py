"""Two quantities of one run against each other: a path through its steps, darker as it goes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb


def shaded_path(table: pd.DataFrame, ax: Axes, *, x: str, y: str, colour: str, label: str) -> Axes:
    """Draw the points (`x`, `y`) in order of `step`, from pale to `colour`, joined by a thin line.

    Args:
        table: tidy rows of one run with `step`, `x` and `y`.
        ax: where to.
        x: the column across.
        y: the column upwards.
        colour: the last step's colour.
        label: the run's name, written at its last step.

    Returns:
        `ax`.
    """
    rows = table.sort_values("step")
    depth = np.linspace(0.25, 1, len(rows))[:, None]
    shades = depth * np.array(to_rgb(colour)) + (1 - depth)
    ax.plot(rows[x], rows[y], color=colour, lw=0.8, alpha=0.4, zorder=2)
    ax.scatter(rows[x], rows[y], c=shades, s=28, edgecolors=colour, linewidths=0.6, zorder=3)
    _name_end(rows.iloc[0], f"step {rows['step'].iloc[0]}", ax, x, y, colour)
    _name_end(rows.iloc[-1], f"{label}\nstep {rows['step'].iloc[-1]}", ax, x, y, colour)
    return ax


def _name_end(row: pd.Series, text: str, ax: Axes, x: str, y: str, colour: str) -> None:
    """Write `text` below and left of a point: the upper right is where good runs end."""
    ax.annotate(
        text,
        (row[x], row[y]),
        (-6, -3),
        textcoords="offset points",
        fontsize=6.5,
        color=colour,
        ha="right",
        va="top",
        linespacing=1.05,
    )
