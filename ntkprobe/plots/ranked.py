"""Lists of named bars, each list under a heading of its own."""

import pandas as pd
from matplotlib.axes import Axes


def ranked_bars(
    table: pd.DataFrame, ax: Axes, *, colours: tuple[str, str], texts: tuple[str, str]
) -> Axes:
    """Draw the bars of every heading from the top down, the names at their left.

    Args:
        table: tidy rows with `heading`, `label` and `push`, in the order to draw.
        ax: where to.
        colours: of positive and of negative bars.
        texts: colours of headings and of labels.

    Returns:
        `ax`.
    """
    lines: list[tuple[str, float | None]] = []
    for heading, rows in table.groupby("heading", sort=False):
        lines += [(str(heading), None), *zip(rows["label"], rows["push"], strict=True)]
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
