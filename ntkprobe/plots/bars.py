"""A mark for every name along one axis: bars that are stacked or ranked, violins, dots."""

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


def ranked_bars(
    table: pd.DataFrame,
    ax: Axes,
    *,
    by: str = "heading",
    colours: tuple[str, str],
    texts: tuple[str, str],
) -> Axes:
    """Draw the bars of every heading from the top down, the names at their left.

    Args:
        table: tidy rows with `heading`, `label` and `push`, in the order to draw.
        ax: where to.
        by: the column of what stands under one heading: two headings may read alike.
        colours: of positive and of negative bars.
        texts: colours of headings and of labels.

    Returns:
        `ax`.
    """
    lines: list[tuple[str, float | None]] = []
    for _, rows in table.groupby(by, sort=False):
        heading = str(rows["heading"].iloc[0])
        lines += [(heading, None), *zip(rows["label"], rows["push"], strict=True)]
    for place, (_, push) in enumerate(lines):
        if push is not None:
            ax.barh(place, push, 0.7, color=colours[push < 0])
    ax.set_yticks(range(len(lines)), [name for name, _ in lines], fontsize=6.5)
    for tick, (_, push) in zip(ax.get_yticklabels(), lines, strict=True):
        tick.set_color(texts[push is not None])
        tick.set_fontweight("bold" if push is None else "normal")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.grid(axis="x")
    ax.grid(visible=False, axis="y")
    ax.axvline(0, color="0.6", linewidth=0.6)
    return ax


def spreads(
    table: pd.DataFrame,
    ax: Axes,
    *,
    value: str,
    by: str,
    order: Sequence[str],
    colours: Sequence[str],
) -> Axes:
    """Draw the distribution of `value` for every kind in the column `by`, a violin each.

    The dashes inside are the quartiles; the violins end where the data do.

    Args:
        table: tidy rows with `value` and `by`.
        ax: where to.
        value: the column across.
        by: the column upwards, names as they are to be read.
        order: its values from top to bottom.
        colours: one for each.

    Returns:
        `ax`.
    """
    import seaborn as sns  # slow, and only violins need it

    sns.violinplot(
        table,
        x=value,
        y=by,
        hue=by,
        order=order,
        hue_order=order,
        palette=list(colours),
        inner="quart",
        cut=0,
        density_norm="width",
        linewidth=0.7,
        legend=False,
        ax=ax,
    )
    for violin in ax.collections:
        violin.set_alpha(0.55)  # the quartiles are dark
    ax.set_ylabel("")
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    return ax


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
