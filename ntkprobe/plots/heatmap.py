"""Maps with their values printed: means group by group, or layers by positions.

Of means by group, rows are the observed x′ and columns the updated x.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from .style import group_style, in_order

PRINTED = 70
"""Cells of a map up to which their numbers are printed."""


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
