"""One dot per labelled row."""

import pandas as pd
from matplotlib.axes import Axes


def labelled_dots(values: pd.Series, ax: Axes, *, colour: str, label: str) -> Axes:
    """Draw a dot at every value, one row each from the bottom up; a missing value has none.

    Args:
        values: in the order of the rows.
        ax: where to.
        colour: of the dots.
        label: their name in the legend.

    Returns:
        `ax`.
    """
    ax.plot(values.to_numpy(), range(len(values)), "o", color=colour, label=label, ms=4)
    return ax
