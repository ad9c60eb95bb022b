"""Figure 9: refusal probability of three example prompts, for several models."""

import pandas as pd
from matplotlib.figure import Figure

from ..plots import style
from ..plots.lines import group_lines
from ..plots.steps import notes_on_rows, step_axis
from ..trajectory import Trajectory
from .measured_tables import example_rows, note_on_examples, refusal_rows
from .stages import with_stages


@with_stages
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return the refusal probability of one prompt of each group at every step of every run.

    Args:
        runs: the measured runs, by name: give a model's as NAME=FOLDER.

    Returns:
        `run, step, group, value, text`; `text` is the paper's own prompt where it was measured.
    """
    return example_rows(refusal_rows(runs))


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a panel per run, all on one scale, the prompts below."""
    names = list(numbers["run"].unique())
    width = style.COLUMN * (1.3 if len(names) == 1 else style.ACROSS)
    figure, axes = style.row([style.run_label(name) for name in names], width=width, height=2.3)
    top = max(1.0, numbers["value"].max())
    for name, ax in zip(names, axes, strict=True):
        step_axis(ax, numbers[numbers["run"] == name]).set(ylim=(-0.03 * top, 1.03 * top))
    for ax in axes[:: style.ACROSS]:
        ax.set_ylabel("refusal probability\n(sum over phrase set)")
    style.footnote(figure, _footnote(numbers))
    for name, ax in zip(names, axes, strict=True):
        group_lines(numbers[numbers["run"] == name], ax)
    return figure


def _footnote(numbers: pd.DataFrame) -> str:
    """Return the prompts, a line for each group, and whose they are."""
    lines = [
        f"{style.group_style(group).label}: " + " / ".join(f"“{text}”" for text in texts)
        for group in style.in_order(numbers["group"])
        for texts in [numbers.loc[numbers["group"] == group, "text"].unique()]
    ]
    notes = [style.escaped(note_on_examples(numbers)), notes_on_rows(numbers)]
    return "\n".join(filter(None, [*map(style.escaped, lines), *notes]))
