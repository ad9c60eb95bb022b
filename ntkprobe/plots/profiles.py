"""One quantity along the model: a line from layer to layer, with its band."""

import pandas as pd
from matplotlib.axes import Axes


def profile(
    rows: pd.DataFrame, ax: Axes, *, x: str, colour: str, y: str = "value", dashed: bool = False
) -> Axes:
    """Draw `y` against `x` with the band from `low` to `high`; dashed, pale and without it.

    Args:
        rows: tidy rows with `x`, `y`, `low` and `high`, in order.
        ax: where to.
        x: the column across.
        colour: of line and band.
        y: the column upwards.
        dashed: whether this line is only there to compare with.

    Returns:
        `ax`.
    """
    if dashed:
        ax.plot(rows[x], rows[y], color=colour, lw=1.0, ls=(0, (3, 2)), marker="o", ms=2.2)
        return ax
    ax.plot(rows[x], rows[y], color=colour, marker="o")
    ax.fill_between(rows[x], rows["low"], rows["high"], color=colour, alpha=0.15, lw=0)
    return ax
