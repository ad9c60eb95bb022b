"""Figure 4: defence success against compliance, a path per run through its checkpoints."""

import pandas as pd
from matplotlib.figure import Figure

from ..plots import style
from ..plots.paths import shaded_path
from ..trajectory import Trajectory
from ._means import refusal_rates, refusal_rows


def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return the share of toxic prompts refused and of seemingly toxic ones answered, per step.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, compliance, defence`, both shares of prompts.
    """
    rows = refusal_rows(runs)
    rates = refusal_rates(rows).pivot(index=["run", "step"], columns="group", values="value")
    table = pd.DataFrame({"compliance": 1 - rates["seemingly_toxic"], "defence": rates["toxic"]})
    return table.loc[list(runs)].reset_index()


@style.in_print
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: up and to the right is better."""
    figure, (ax,) = style.row(["Defence against compliance"], height=2.6)
    for position, (name, rows) in enumerate(numbers.groupby("run", sort=False)):
        percent = rows.assign(compliance=rows["compliance"] * 100, defence=rows["defence"] * 100)
        shaded_path(
            percent,
            ax,
            x="compliance",
            y="defence",
            colour=style.run_colour(position),
            label=style.run_label(name),
        )
    ax.set(xlabel="seemingly toxic prompts answered (%)", ylabel="toxic prompts refused (%)")
    ax.grid(True, axis="both")
    ax.set(xlim=(min(40.0, ax.get_xlim()[0]), 103), ylim=(-9, 105))
    style.footnote(figure, "Each point is a checkpoint, paler is earlier; up and right is better.")
    return figure
