"""One quantity against the step: a line and its band per group, each labelled at its end."""

from collections.abc import Collection, Sequence

import pandas as pd
from matplotlib.axes import Axes

from .style import in_order, look


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
        rows, style = table[table["group"] == group].sort_values("step"), look(group)
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
        table: tidy rows with `step`, `observed_group`, `updated_group`, `y`, `low` and `high`.
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
        name = f"{look(observed).short} ← {look(updated).short}"
        ends.append((rows[y].iloc[-1], name, look(observed).text if bold else "0.45"))
    return label_ends(ax, ends, size=6.5)


def _pair_line(rows: pd.DataFrame, ax: Axes, *, y: str, bold: bool) -> None:
    observed, updated = look(rows["observed_group"].iloc[0]), look(rows["updated_group"].iloc[0])
    (line,) = ax.plot(rows["step"], rows[y], color=observed.colour, lw=2.4 if bold else 1.0)
    line.set(zorder=3 if bold else 2, alpha=1 if bold else 0.75)
    if observed != updated:
        line.set(linestyle=(0, (2.5, 2.5)), gapcolor=updated.colour, dash_capstyle="butt")
    if bold:
        ax.fill_between(
            rows["step"], rows["low"], rows["high"], color=observed.colour, alpha=0.15, lw=0
        )


def label_ends(
    ax: Axes, ends: Sequence[tuple[float, str, str]], *, size: float = 7.5, lines: int = 1
) -> Axes:
    """Write each text right of the Axes at its height, pushed apart so that none lies on another.

    Args:
        ax: the Axes, its limits already final.
        ends: height in data units, text, colour.
        size: font size in points.
        lines: how many lines the longest text has.

    Returns:
        `ax`.
    """
    bottom, top = ax.get_ylim()
    points = ax.get_window_extent().height / ax.figure.dpi * 72
    gap = 1.25 * size * lines / points
    wished = [min(max((y - bottom) / (top - bottom), 0.0), 1.0) for y, *_ in ends]
    places = _spread(sorted(wished), gap)
    for place, (_, text, colour) in zip(places, sorted(ends, key=lambda e: e[0]), strict=True):
        ax.annotate(
            text,
            (1.02, place),
            xycoords="axes fraction",
            color=colour,
            fontsize=size,
            va="center",
            linespacing=1.05,
        )
    return ax


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return the sorted `heights` moved apart to at least `gap`, each cluster about its mean."""
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and _foot(clusters[-1], gap) < _head(clusters[-2], gap):
            last = clusters.pop()
            clusters[-1] += last
    return [_foot(c, gap) + gap * (i + 0.5) for c in clusters for i in range(len(c))]


def _foot(cluster: Sequence[float], gap: float) -> float:
    """Return the lower edge of a stack of labels about their mean height, inside the Axes."""
    tall = gap * len(cluster)
    return max(min(sum(cluster) / len(cluster) - tall / 2, 1 + gap / 4 - tall), -gap / 4)


def _head(cluster: Sequence[float], gap: float) -> float:
    return _foot(cluster, gap) + gap * len(cluster)
