"""One quantity layer by layer and position by position, as a map."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

PRINTED = 70
"""Cells of a map up to which their numbers are printed."""


def layer_map(
    table: pd.DataFrame,
    ax: Axes,
    *,
    columns: Sequence[str],
    limits: tuple[float, float],
    value: str = "value",
    by: str = "position",
    colours: str = "RdBu_r",
) -> Axes:
    """Draw `value` as a map: layers upwards, the columns of `by` from left to right.

    Args:
        table: tidy rows with `layer`, `by` and `value`.
        ax: where to.
        columns: values of `by`, in order.
        limits: ends of the colour scale; give the same to every map that is compared.
        value: the column to draw.
        by: the column across.
        colours: the name of a colour map.

    Returns:
        `ax`.
    """
    grid = table.pivot(index="layer", columns=by, values=value).reindex(columns=list(columns))
    cells = grid.to_numpy(dtype=float)
    ax.imshow(cells, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", origin="lower")
    shown = np.unique(np.linspace(0, len(grid) - 1, 9).round().astype(int))
    ax.set_yticks(shown, [str(grid.index[place]) for place in shown])
    ax.set_xticks(range(len(columns)), [name.replace("_", " ") for name in columns], rotation=30)
    ax.set_xticklabels(ax.get_xticklabels(), ha="right")
    ax.tick_params(length=0)
    ax.grid(False)
    if cells.size <= PRINTED:
        middle, half = sum(limits) / 2, (limits[1] - limits[0]) / 2
        for (row, column), number in np.ndenumerate(cells):
            dark = abs(number - middle) > 0.7 * half
            words = "" if np.isnan(number) else f"{number:.2f}".replace("-", "−")
            ax.text(column, row, words, ha="center", va="center", fontsize=6,
                    color="white" if dark else "0.15")  # fmt: skip
    return ax
