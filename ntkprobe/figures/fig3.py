"""Figure 3: mean similarity of every pair of groups during safety alignment."""

import pandas as pd
from matplotlib.figure import Figure

from ..plots import style
from ..plots.lines import pair_lines
from ..plots.steps import notes_on_rows, step_axis
from ..trajectory import Trajectory
from .measured_tables import kernel_means
from .stages import with_stages


@with_stages
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return the mean similarity of every ordered pair of groups at every step.

    In the paper's normalisation, row-wise: ‖K(x′, x)‖_F / ‖K(x′, x′)‖_F.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, observed_group, updated_group, similarity, low, high, pairs`.
    """
    return kernel_means(runs).reset_index(drop=True)


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a panel per run on one scale, seemingly toxic ↔ toxic emphasised."""
    names = list(numbers["run"].unique())
    figure, axes = style.row([style.run_label(name) for name in names], height=2.6)
    note = "Observed ← updated; dashed: the observed group's colour on the updated group's."
    bands = " Bold: seemingly toxic ↔ toxic, with 95 % bootstrap bands over prompts."
    style.footnote(figure, f"{note}{bands} {notes_on_rows(numbers)}".strip())
    for ax in axes[:: style.ACROSS]:
        ax.set_ylabel("mean  ‖K(x′, x)‖$_F$ / ‖K(x′, x′)‖$_F$")
    limits = min(0.0, numbers["low"].min()), numbers["high"].max() * 1.04
    for name, ax in zip(names, axes, strict=True):
        step_axis(ax, numbers[numbers["run"] == name]).set(ylim=limits)
        pair_lines(numbers[numbers["run"] == name], ax, emphasised=("seemingly_toxic", "toxic"))
    return figure
