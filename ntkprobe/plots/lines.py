"""One quantity against the step: a line and its band per group, each labelled at its end."""

from collections.abc import Collection, Sequence

import pandas as pd
from matplotlib.axes import Axes

from .style import group_style, in_order


def group_lines(table: pd.DataFrame, ax: Axes, *, y: str = "value", labels: bool = True) -> Axes:
    """Draw `y` against `step`: a line and its band per group, the name at the line's end.

    Args:
        table: tidy rows with `step`, `group`, `y` and, where known, `low` and `high`.
        ax: where to.
        y: the column to draw.
        labels: whether to write each group's name at the end of its line.

    Returns:
        `ax`.
    """
    ends = []
    for group in in_order(table["group"]):
        rows, style = table[table["group"] == group].sort_values("step"), group_style(group)
        ax.plot(rows["step"], rows[y], color=style.colour, marker=style.marker)
        if {"low", "high"} <= set(rows):
            ax.fill_between(
                rows["step"], rows["low"], rows["high"], color=style.colour, alpha=0.18, lw=0
            )
        ends.append((rows[y].iloc[-1], style.label, style.text))
    if labels:
        label_ends(ax, ends)
    return ax


def pair_lines(
    table: pd.DataFrame, ax: Axes, *, emphasised: Collection[str], y: str = "similarity"
) -> Axes:
    """Draw `y` against `step`, a line for every ordered pair of groups.

    A cross pair's line is dashed in the observed group's colour on the updated group's.

    Args:
        table: tidy rows with `step`, `observed_group`, `updated_group`, `y` and, where known, `low`
            and `high`.
        ax: where to.
        emphasised: the groups whose cross pairs are drawn bold, with their bands.
        y: the column to draw.

    Returns:
        `ax`.
    """
    ends = []
    for (observed, updated), pair in table.groupby(["observed_group", "updated_group"]):
        rows, bold = pair.sort_values("step"), {observed, updated} == set(emphasised)
        _pair_line(rows, ax, y=y, bold=bold)
        name = f"{group_style(observed).short} ← {group_style(updated).short}"
        ends.append((rows[y].iloc[-1], name, group_style(observed).text))
    return label_ends(ax, ends, size=6.5)


def _pair_line(rows: pd.DataFrame, ax: Axes, *, y: str, bold: bool) -> None:
    observed, updated = (
        group_style(rows["observed_group"].iloc[0]),
        group_style(rows["updated_group"].iloc[0]),
    )
    (line,) = ax.plot(rows["step"], rows[y], color=observed.colour, lw=2.4 if bold else 1.0)
    if len(rows) == 1:  # a line of one step would not be seen
        line.set(marker=observed.marker)
    line.set(zorder=3 if bold else 2, alpha=1 if bold else 0.75)
    if observed != updated:
        line.set(linestyle=(0, (2.5, 2.5)), gapcolor=updated.colour, dash_capstyle="butt")
    if bold and {"low", "high"} <= set(rows):
        ax.fill_between(
            rows["step"], rows["low"], rows["high"], color=observed.colour, alpha=0.15, lw=0
        )


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], *, size: float = 7.5) -> Axes:
    """Write each text right of the Axes at its height, moved so that no two overlap.

    A text that was moved is connected to its height by a thin line.

    Args:
        ax: the Axes, its limits and titles already final.
        ends: height in data units, text, colour.
        size: font size in points.

    Returns:
        `ax`.
    """
    ordered = sorted(ends, key=lambda end: end[0])
    bottom, top = ax.get_ylim()
    wished = [min(max((y - bottom) / (top - bottom), 0.0), 1.0) for y, *_ in ordered]
    line = _LINE * size / _height(ax)
    tall = [line * (text.count("\n") + 1) + line / 4 for _, text, _ in ordered]
    for wish, place, (_, text, colour) in zip(wished, _spread(wished, tall), ordered, strict=True):
        tied = {"arrowstyle": "-", "lw": 0.5, "color": colour, "shrinkA": 0, "shrinkB": 0}
        ax.annotate(
            text,
            (1.005, wish),
            (1.3 * size, place),
            xycoords="axes fraction",
            textcoords=("offset points", "axes fraction"),
            arrowprops={**tied, "relpos": (0, 0.5)} if abs(wish - place) > line / 2 else None,
            color=colour,
            fontsize=size,
            va="center",
            linespacing=1.05,
        )
    return ax


_LINE = 1.2
"""Height of a line of text, in font sizes."""


def _height(ax: Axes) -> float:
    """Return the height of the Axes in points, once its figure is laid out."""
    figure = ax.figure.figure
    engine = figure.get_layout_engine() if figure else None
    if engine is not None and figure is not None:
        engine.execute(figure)
    return ax.get_window_extent().height / ax.figure.dpi * 72


def _spread(wished: Sequence[float], tall: Sequence[float]) -> list[float]:
    """Return the centres of labels, moved apart where they would overlap, inside the Axes.

    Args:
        wished: centres in ascending order, in fractions of the Axes.
        tall: the labels' heights.

    Returns:
        A centre for each; labels that touch are stacked about the mean of their wishes.
    """
    stacks: list[list[int]] = []
    feet: list[float] = []
    for label in range(len(wished)):
        stacks.append([label])
        feet.append(_foot(stacks[-1], wished, tall))
        while len(stacks) > 1 and feet[-1] < feet[-2] + sum(tall[i] for i in stacks[-2]):
            upper, _ = stacks.pop(), feet.pop()
            stacks[-1] += upper
            feet[-1] = _foot(stacks[-1], wished, tall)
    return [
        foot + sum(tall[j] for j in stack[:place]) + tall[i] / 2
        for foot, stack in zip(feet, stacks, strict=True)
        for place, i in enumerate(stack)
    ]


def _foot(stack: Sequence[int], wished: Sequence[float], tall: Sequence[float]) -> float:
    """Return the lower edge of a stack about the mean of its wishes, not far outside the Axes."""
    height, slack = sum(tall[i] for i in stack), tall[stack[0]] / 4
    middle = sum(wished[i] for i in stack) / len(stack)
    return max(min(middle - height / 2, 1 + slack - height), -slack)
