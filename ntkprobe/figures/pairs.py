"""The distribution over prompt pairs behind every group mean of figure 6."""

import pandas as pd
from matplotlib.figure import Figure

from ..errors import UserError
from ..plots import style
from ..plots.bars import spreads
from ..plots.steps import notes_on_rows, titled
from ..trajectory import Trajectory
from .measured_tables import OTHER_PROMPTS, missing_message
from .stages import stage_by_stage


@stage_by_stage
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return the similarity of every ordered pair of different prompts at each run's first step.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, observed, updated, observed_group, updated_group, similarity`.
    """
    tables = [_first_step(run).assign(run=name) for name, run in runs.items()]
    columns = [
        "run",
        "step",
        "observed",
        "updated",
        "observed_group",
        "updated_group",
        "similarity",
    ]
    return pd.concat(tables, ignore_index=True)[columns]


def _first_step(run: Trajectory) -> pd.DataFrame:
    """Return the pairs at the first step, without a prompt's pair with itself.

    Args:
        run: a measured run.

    Returns:
        Rows of `Trajectory.kernel`.

    Raises:
        UserError: if it has no kernel.
    """
    table = run.kernel()
    if table.empty:
        raise UserError(missing_message(run, "kernel", "--only kernel"))
    different = table["observed"] != table["updated"]
    if not different.any():
        raise UserError(f"{run.folder} has no pair of different prompts: {OTHER_PROMPTS}")
    return table[(table["step"] == table["step"].min()) & different]


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a panel per run, a violin per ordered pair of groups."""
    firsts = numbers.groupby("run", sort=False)["step"].first()
    titles = [
        titled(style.run_label(name), numbers[numbers["run"] == name], step)
        for name, step in firsts.items()
    ]
    figure, axes = style.row(titles, height=3.2)
    groups = style.in_order(numbers["observed_group"])
    labels = {f"{a} {b}": f"{_short(a)} ← {_short(b)}" for a in groups for b in groups}
    pairs = (numbers["observed_group"] + " " + numbers["updated_group"]).map(labels)
    table = numbers.assign(pair=pairs)
    colours = [style.group_style(a).colour for a in groups for _ in groups]
    for name, ax in zip(firsts.index, axes, strict=True):
        of_run, order = table[table["run"] == name], list(labels.values())
        spreads(of_run, ax, value="similarity", by="pair", order=order, colours=colours)
        ax.set(xlim=(0, numbers["similarity"].max() * 1.02))
        ax.locator_params(axis="x", nbins=5)
        ax.set_xlabel("‖K(x′, x)‖$_F$ / ‖K(x′, x′)‖$_F$")
    for ax in set(axes) - set(axes[:: style.ACROSS]):
        ax.tick_params(axis="y", length=0, labelleft=False)
    note = "Observed ← updated; pairs of different prompts; lines inside: quartiles."
    style.footnote(figure, f"{note} {notes_on_rows(numbers)}".strip())
    return figure


def _short(group: str) -> str:
    return style.group_style(group).short
