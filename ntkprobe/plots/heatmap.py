"""Group by group means as a map, its values printed: rows observed x′, columns updated x."""

from collections.abc import Callable

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from .style import group_style, in_order


def group_map(
    table: pd.DataFrame,
    ax: Axes,
    *,
    value: str = "similarity",
    beside: str | None = None,
    limits: tuple[float, float] = (0, 1),
    colours: str = "Blues",
    form: Callable[[float], str] = "{:.2f}".format,
) -> Axes:
    """Draw `value` for every pair of `observed_group` (rows) and `updated_group` (columns).

    Args:
        table: tidy rows with both groups and `value`, one row per ordered pair.
        ax: where to.
        value: the column to draw and print.
        beside: a column to print in brackets below it, where it has a number.
        limits: ends of the colour scale; give the same to every map that is compared.
        colours: the name of a colour map.
        form: writes a value.

    Returns:
        `ax`.
    """
    rows, columns = in_order(table["observed_group"]), in_order(table["updated_group"])
    grid = _grid(table, value).loc[rows, columns]
    names = {group: group_style(group).label.replace(" ", "\n") for group in (*rows, *columns)}
    sns.heatmap(
        grid,
        ax=ax,
        vmin=limits[0],
        vmax=limits[1],
        cmap=colours,
        annot=_printed(table, value, beside, form).loc[rows, columns],
        fmt="",
        annot_kws={"fontsize": 9},
        square=True,
        cbar=False,
        linewidths=1,
        xticklabels=[names[group] for group in columns],
        yticklabels=[names[group] for group in rows],
    )
    ax.tick_params(length=0, labelrotation=0)
    ax.grid(False)
    ax.set(xlabel="updated prompt x", ylabel="observed prompt x′")
    for ticks, groups in ((ax.get_xticklabels(), columns), (ax.get_yticklabels(), rows)):
        for tick, group in zip(ticks, groups, strict=True):
            tick.set_color(group_style(group).text)
    return ax


def _grid(table: pd.DataFrame, column: str) -> pd.DataFrame:
    return table.pivot(index="observed_group", columns="updated_group", values=column)


def _printed(
    table: pd.DataFrame, value: str, beside: str | None, form: Callable[[float], str]
) -> pd.DataFrame:
    """Return the text of every cell, with the number of `beside` in brackets below."""
    texts = table[value].map(form)
    if beside is not None and beside in table:
        known = table[beside].notna()
        texts = texts.mask(known, texts + table[beside].map("\n({:.2f})".format))
    return _grid(table.assign(text=texts), "text")
