"""Points in the plane: coloured and shaped by group, or a run's path that darkens as it goes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from .steps import stage_names, step_name
from .style import group_style, in_order


def group_points(table: pd.DataFrame, ax: Axes, *, x: str, y: str) -> Axes:
    """Draw a point for every row, in its group's colour and shape.

    Args:
        table: tidy rows with `group`, `x` and `y`.
        ax: where to.
        x: the column across.
        y: the column upwards.

    Returns:
        `ax`.
    """
    for group in in_order(table["group"]):
        rows, style = table[table["group"] == group], group_style(group)
        ax.scatter(
            rows[x],
            rows[y],
            s=11,
            marker=style.marker,
            color=style.colour,
            alpha=0.75,
            linewidths=0,
            label=style.label,
        )
    return ax


def shaded_path(
    table: pd.DataFrame,
    ax: Axes,
    *,
    x: str,
    y: str,
    colour: str,
    label: str,
    start: bool = True,
) -> Axes:
    """Draw the points (`x`, `y`) in order of `step`, from pale to `colour`, joined by a thin line.

    Args:
        table: tidy rows of one run with `step`, `x` and `y`.
        ax: where to, its limits already final.
        x: the column across.
        y: the column upwards.
        colour: the last step's colour.
        label: the run's name, written at its last step.
        start: whether the first step is named too: paths that begin together need it once.

    Returns:
        `ax`.
    """
    rows = table.sort_values("step")
    depth = np.linspace(0.25, 1, len(rows))[:, None]
    shades = depth * np.array(to_rgb(colour)) + (1 - depth)
    ax.plot(rows[x], rows[y], color=colour, lw=0.8, alpha=0.4, zorder=2)
    ax.scatter(rows[x], rows[y], c=shades, s=28, edgecolors=colour, linewidths=0.6, zorder=3)
    first, last = rows.iloc[0], rows.iloc[-1]
    if stage_names(rows):  # each point is a model of its own
        for _, point in rows.iterrows():
            _name_end((point[x], point[y]), step_name(rows, point["step"]), ax, colour)
        return ax
    if start:
        _name_end((first[x], first[y]), step_name(rows, first["step"]), ax, "0.35")
    _name_end((last[x], last[y]), f"{label}, {step_name(rows, last['step'])}", ax, colour)
    return ax


def _name_end(point: tuple[float, float], text: str, ax: Axes, colour: str) -> None:
    """Write `text` below a point, towards the middle of the Axes."""
    left = point[0] < sum(ax.get_xlim()) / 2
    ax.annotate(
        text,
        point,
        (6 if left else -6, -3),
        textcoords="offset points",
        fontsize=6.5,
        color=colour,
        ha="left" if left else "right",
        va="top",
        linespacing=1.05,
    )
