"""One quantity as lines with bands: against the step by group or pair of groups, or by layer.

`similarity_lines`, `refusal_lines` and `drift_lines` draw one run's tables against the step, axis
and all; `label_ends` names lines where they end.
"""

from collections.abc import Collection, Sequence

import pandas as pd
from matplotlib.axes import Axes

from .steps import step_axis
from .style import group_style, in_order

_ACROSS = ("seemingly_toxic", "toxic")


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


def similarity_lines(means: pd.DataFrame, ax: Axes) -> Axes:
    """Return `ax` with mean similarities and their bands, a line per ordered pair of groups."""
    ax.set_ylim(0, means["high"].max() * 1.04)
    pair_lines(means, ax, emphasised=_ACROSS)
    step_axis(ax, means).set(ylabel="mean  ‖K(x′, x)‖$_F$ / ‖K(x′, x′)‖$_F$")
    return ax


def refusal_lines(means: pd.DataFrame, ax: Axes) -> Axes:
    """Return `ax` with mean refusal probabilities, a line for every group."""
    group_lines(means, ax, y="probability")
    step_axis(ax, means).set(ylabel="mean refusal probability")
    return ax


def drift_lines(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one minus the cosine with the first kernel: whole, and for every pair of groups.

    K(x, x′) is the transpose of K(x′, x) and has the same drift: one line is drawn for both.

    Args:
        table: `step, observed_group, updated_group, drift`; the whole kernel has no groups.
        ax: where to.

    Returns:
        `ax`.
    """
    ax.set_ylim(0, (table["drift"].max() * 1.04) or 1.0)
    whole = table[table["observed_group"].isna()]
    (line,) = ax.plot(whole["step"], whole["drift"], color="0.2", ls=":", lw=1.8)
    line.set(label="whole kernel", marker="o" if len(whole) == 1 else "")
    pairs = table.dropna(subset="observed_group")
    order = {group: place for place, group in enumerate(in_order(pairs["observed_group"]))}
    once = pairs["observed_group"].map(order) <= pairs["updated_group"].map(order)
    pair_lines(pairs[once], ax, emphasised=_ACROSS, y="drift")
    ax.legend(frameon=False, loc="upper left", fontsize=7.5)
    step_axis(ax, table).set(ylabel="1 − cos(K$_t$, K$_0$)")
    return ax


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
