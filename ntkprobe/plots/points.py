"""Points in the plane, coloured and shaped by group."""

import pandas as pd
from matplotlib.axes import Axes

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
