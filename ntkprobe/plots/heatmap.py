"""Group by group means as a map, its values printed: rows observed x′, columns updated x."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from .style import in_order, look


def group_map(
    table: pd.DataFrame,
    ax: Axes,
    *,
    value: str = "similarity",
    beside: str | None = None,
    limits: tuple[float, float] = (0, 1),
) -> Axes:
    """Draw `value` for every pair of `observed_group` (rows) and `updated_group` (columns).

    Args:
        table: tidy rows with both groups and `value`, one row per ordered pair.
        ax: where to.
        value: the column to draw and print.
        beside: a column to print in brackets below it, where it has a number.
        limits: ends of the colour scale; give the same to every map that is compared.

    Returns:
        `ax`.
    """
    order = in_order(table["observed_group"])
    grid = _grid(table, value).loc[order, order]
    names = [look(group).label.replace(" ", "\n") for group in order]
    sns.heatmap(
        grid,
        ax=ax,
        vmin=limits[0],
        vmax=limits[1],
        cmap="Blues",
        annot=_printed(table, value, beside).loc[order, order],
        fmt="",
        annot_kws={"fontsize": 9},
        square=True,
        cbar=False,
        linewidths=1,
        xticklabels=names,
        yticklabels=names,
    )
    ax.tick_params(length=0, labelrotation=0)
    ax.grid(False)
    ax.set(xlabel="updated prompt x", ylabel="observed prompt x′")
    for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
        for tick, group in zip(ticks, order, strict=True):
            tick.set_color(look(group).text)
    return ax


def _grid(table: pd.DataFrame, column: str) -> pd.DataFrame:
    return table.pivot(index="observed_group", columns="updated_group", values=column)


def _printed(table: pd.DataFrame, value: str, beside: str | None) -> pd.DataFrame:
    """Return the text of every cell: two digits, and those of `beside` in brackets below."""
    texts = table[value].map("{:.2f}".format)
    if beside is not None and beside in table:
        known = table[beside].notna()
        texts = texts.mask(known, texts + table[beside].map("\n({:.2f})".format))
    return _grid(table.assign(text=texts), "text")
