"""The style of all figures: a colour and a marker per group, sizes that fit a printed page.

The colours are Paul Tol's high-contrast set, with darker variants for text: they are
distinguishable with any common colour vision, and in grey.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from textwrap import fill, shorten
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN, PAGE = 3.3, 6.8
"""Widths in inches of one printed column and of both."""

ACROSS = 2
"""Panels in a line of `row`; as many fit the page."""

PRINT: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3, and the text stays text
    "svg.fonttype": "none",
    "savefig.dpi": 220,
}


@dataclass(frozen=True)
class GroupStyle:
    """The style of a group in every figure: colours of lines and of text, a marker, labels."""

    colour: str
    text: str
    marker: str
    label: str
    short: str


GROUPS = {
    "normal": GroupStyle("#004488", "#004488", "s", "normal", "normal"),
    "seemingly_toxic": GroupStyle("#DDAA33", "#8A6A00", "o", "seemingly toxic", "s-toxic"),
    "toxic": GroupStyle("#BB5566", "#994455", "^", "toxic", "toxic"),
}
_RUNS = (
    "#555555",
    "#117733",
    "#882255",
    "#6699CC",
    "#999933",
    "#332288",
    "#44AA99",
    "#AA4499",
)
"""Colours of runs, none of them a group's."""
_RUN_LABELS = {
    "base": "base model",
    "stl": "STL",
    "dcr": "DCR → STL",
    "dcr-stl": "DCR → STL",
    "control-stl": "control → STL",
    "stl-aug": "STL-aug",
}


class Drawing(Figure):
    """A figure that is saved with the settings `PRINT`, and is shown in Jupyter without pyplot."""

    def savefig(self, *args: Any, **settings: Any) -> None:
        """Save as Matplotlib does, at the resolution and with the fonts of `PRINT`.

        Args:
            args: Matplotlib's.
            settings: Matplotlib's.
        """
        with mpl.rc_context(PRINT):
            super().savefig(*args, **settings)

    def _repr_png_(self) -> bytes:
        """Return the picture as IPython asks for it."""
        with BytesIO() as file:
            self.savefig(file, format="png", dpi=110)
            return file.getvalue()


print_style = mpl.rc_context(PRINT)
"""A decorator and a context: figures made inside have the sizes and fonts of `PRINT`."""


def group_style(group: Hashable) -> GroupStyle:
    """Return the style of a group; an unknown group is grey."""
    name = escaped(str(group).replace("_", " "))
    return GROUPS.get(str(group), GroupStyle("#555555", "#333333", "D", name, name))


def in_order(groups: Iterable[str]) -> list[str]:
    """Return the groups without repeats, in the order of the paper's maps."""
    paper = ["seemingly_toxic", "toxic", "normal"]
    return sorted(set(groups), key=lambda g: (paper.index(g) if g in paper else len(paper), g))


def run_label(name: Hashable) -> str:
    """Return the label of a run in titles: "DCR → STL" for `dcr-stl`, else its name."""
    return escaped(_RUN_LABELS.get(str(name), str(name)))


def run_colour(position: int) -> str:
    """Return the colour of the run at `position`, where runs and not groups are compared."""
    return _RUNS[position % len(_RUNS)]


def escaped(text: str, width: int | None = None) -> str:
    """Return `text`, wrapped at `width`, with dollar signs that do not start mathematics."""
    return (fill(text, width) if width else text).replace("$", r"\$")


def shortened(text: str, width: int) -> str:
    """Return a text on one line of at most `width` letters, with dollar signs escaped.

    It ends with a whole word where that loses less than half: a text in Chinese or Japanese, or an
    address, may have no blank at all, and then ends anywhere.
    """
    line = " ".join(text.split())
    whole = shorten(line, width, placeholder=" …")
    kept = whole if len(whole) > min(width, len(line)) / 2 else f"{line[: width - 2]} …"
    return escaped(kept)


@print_style
def new_axes(width: float = PAGE, height: float = 3.0) -> Axes:
    """Return the Axes of a new pyplot figure, which a notebook shows at the end of its cell."""
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def panels(
    rows: int, columns: int, *, width: float = PAGE, height: float = 2.2
) -> tuple[Figure, np.ndarray]:
    """Return a new figure and its Axes `[rows, columns]`, which belong to no window.

    Args:
        rows: number of rows.
        columns: number of columns.
        width: of the figure, in inches.
        height: of each row, in inches.

    Returns:
        Figure and Axes.
    """
    figure = Drawing(figsize=(width, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def row(
    titles: Sequence[str], *, width: float | None = None, height: float = 2.2
) -> tuple[Figure, list[Axes]]:
    """Return a new figure with one panel under each title, lettered where there are several.

    Args:
        titles: from left to right; more than `ACROSS` go on in a further row.
        width: of the figure, in inches; a printed column for each panel by default.
        height: of each row, in inches.

    Returns:
        Figure and Axes.
    """
    columns = min(len(titles), ACROSS)
    rows = -(-len(titles) // columns)
    figure, grid = panels(rows, columns, width=width or COLUMN * columns, height=height)
    axes = list(grid.flat)[: len(titles)]
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    for ax in list(grid.flat)[len(titles) :]:
        ax.set_visible(False)
    letter(axes)
    return figure, axes


def write_reason(ax: Axes, why: str) -> None:
    """Write into empty Axes the reason why they are empty."""
    ax.text(0.5, 0.5, fill(why, 24), transform=ax.transAxes, ha="center", va="center", color="0.5")
    ax.set(xticks=[], yticks=[])


def letter(axes: Sequence[Axes]) -> None:
    """Put (a), (b), … before the titles of `axes`, where there is more than one."""
    if len(axes) > 1:
        for index, ax in enumerate(axes):
            ax.set_title(f"({chr(97 + index)})  {ax.get_title(loc='left')}")


_LETTERS = 20
"""Letters of a footnote in an inch."""


def footnote(figure: Figure, text: str) -> None:
    """Write `text` small and grey under the panels: what the bands are, how many prompts."""
    width = int(_LETTERS * figure.get_figwidth())
    lines = "\n".join(fill(line, width) for line in text.splitlines())
    figure.supxlabel(lines, fontsize=6.5, color="0.35", x=0.01, ha="left")


def group_legend(figure: Figure, ax: Axes) -> None:
    """Put one legend for all panels above them, from the labels of `ax`."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
