"""Contributions to a sum as stacked bars, one for every layer or part of a model."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes


def stacked_bars(
    table: pd.DataFrame,
    ax: Axes,
    *,
    x: str,
    y: str,
    by: str,
    order: Sequence[str],
    colours: Mapping[str, str],
) -> Axes:
    """Draw a bar for every `x` in `order`, stacked from the rows' `y` in the order of `colours`.

    Negative contributions are stacked downwards from zero.

    Args:
        table: tidy rows, one for each `x` and `by`.
        ax: where to.
        x: the column across.
        y: the column upwards.
        by: the column that is stacked.
        order: the values of `x` from left to right.
        colours: a colour for each value of `by`, the first one undermost.

    Returns:
        `ax`.
    """
    grid = (
        table.pivot_table(index=x, columns=by, values=y, aggfunc="sum")
        .reindex(list(order))
        .fillna(0)
    )
    above, below = np.zeros(len(grid)), np.zeros(len(grid))
    for name, colour in colours.items():
        if name in grid:
            heights = grid[name].to_numpy()
            bottoms = np.where(heights >= 0, above, below)
            ax.bar(range(len(grid)), heights, 0.8, bottom=bottoms, color=colour, label=name)
            above, below = above + heights.clip(min=0), below + heights.clip(max=0)
    ax.set_xticks(range(len(grid)), [str(name) for name in order])
    return ax
