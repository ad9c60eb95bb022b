"""The distribution over prompt pairs behind every group mean of figure 6."""

import pandas as pd
from matplotlib.figure import Figure

from ..errors import UserError
from ..plots import style
from ..plots.distributions import spreads
from ..trajectory import Trajectory
from ._means import missing


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
        raise UserError(missing(run, "kernel", "--only kernel"))
    different = table["observed"] != table["updated"]
    return table[(table["step"] == table["step"].min()) & different]


@style.in_print
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a panel per run, a violin per ordered pair of groups."""
    names = list(numbers["run"].unique())
    groups = style.in_order(numbers["observed_group"])
    order = [(a, b) for a in groups for b in groups]
    labels = {pair: " ← ".join(style.look(g).short for g in pair) for pair in order}
    pairs = pd.Series(
        list(zip(numbers["observed_group"], numbers["updated_group"], strict=True)), numbers.index
    )
    table = numbers.assign(pair=pairs.map(labels))
    figure, axes = style.panels(1, len(names), width=style.COLUMN * len(names), height=3.2)
    for name, ax in zip(names, axes.flat, strict=True):
        rows = table[table["run"] == name]
        spreads(
            rows,
            ax,
            value="similarity",
            by="pair",
            order=list(labels.values()),
            colours=[style.look(observed).colour for observed, _ in order],
        )
        ax.set_xlim(0, numbers["similarity"].max() * 1.02)
        ax.set(xlabel="‖K(x′, x)‖$_F$ / ‖K(x′, x′)‖$_F$")
        ax.set_title(f"{style.run_label(name)}, step {rows['step'].iloc[0]}", loc="left")
    for ax in axes.flat[1:]:
        ax.tick_params(axis="y", length=0, labelleft=False)
    style.letter(list(axes.flat))
    style.footnote(
        figure, "Observed ← updated; lines inside: quartiles; pairs of different prompts."
    )
    return figure
