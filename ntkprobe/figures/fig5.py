"""Figure 5: refusal probability of each group during safety alignment, without and with DCR."""

import pandas as pd
from matplotlib.figure import Figure

from ..plots import style
from ..plots.lines import group_lines
from ..plots.steps import group_sizes, notes_on_rows, step_axis
from ..trajectory import Trajectory
from .measured_tables import refusal_probabilities, refusal_rows
from .stages import with_stages


@with_stages
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return the mean refusal probability of every group at every step, and its interval.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, group, value, low, high, prompts`.
    """
    return refusal_probabilities(refusal_rows(runs))


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a panel per run, all on one scale."""
    names = list(numbers["run"].unique())
    figure, axes = style.row([style.run_label(name) for name in names])
    for ax in axes[:: style.ACROSS]:
        ax.set_ylabel("refusal probability\n(sum over phrase set)")
    note = f"Means over {group_sizes(numbers)} prompts; bands: 95 % bootstrap over prompts."
    style.footnote(figure, f"{note} {notes_on_rows(numbers)}".strip())
    top = max(1.0, numbers["high"].max())
    for name, ax in zip(names, axes, strict=True):
        step_axis(ax, numbers[numbers["run"] == name]).set(ylim=(-0.03 * top, 1.03 * top))
        group_lines(numbers[numbers["run"] == name], ax)
    return figure
