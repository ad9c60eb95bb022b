"""Where seemingly toxic prompts lie between answered and refused ones, by layer and position."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import UserError
from ..plots import style
from ..plots.heatmap import layer_map
from ..plots.steps import notes_on_rows, titled
from ..trajectory import Trajectory
from .directions import TITLES
from .measured_tables import OTHER_PROMPTS, missing_message
from .stages import stage_by_stage

GROUP = "seemingly_toxic"
DIRECTIONS = ("refusal", "toxicity")
RESAMPLES = 999
LIMITS = (-0.25, 1.25)


@stage_by_stage
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return where each group lies along refusal and toxicity, at each run's last step.

    Positions are the prompt's last token, the template's tokens behind it, and the first answered
    token. A prompt's own activation has no part in the direction that it is projected on.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, position, layer, direction, group, value, low, high, prompts`; 0 and 1 are the
        means of the direction's two classes.

    Raises:
        UserError: if no run has activations at named positions, with two classes.
    """
    tables = []
    for name, run in runs.items():
        if not run.direction_steps():
            raise UserError(missing_message(run, "directions", "--only directions", run.folder))
        step = run.direction_steps()[-1]
        measured = run.directions(step)
        if any(one.name in DIRECTIONS for one in measured.classes):
            table = measured.projections(resamples=RESAMPLES)
            tables.append(table.assign(run=name, step=step))
    if not tables:
        raise UserError(f"no direction of two prompts or more in both classes: {OTHER_PROMPTS}")
    rows = pd.concat(tables, ignore_index=True)
    rows = rows[rows["direction"].isin(DIRECTIONS)].reset_index(drop=True)
    first = ["run", "step", "position", "layer", "direction", "group", "value", "low", "high"]
    return rows[[*first, "prompts"]]


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a row per run, a map per direction, of the seemingly toxic prompts."""
    names = list(numbers["run"].unique())
    figure, axes = style.panels(len(names), len(DIRECTIONS), height=2.3)
    for name, row in zip(names, axes, strict=True):
        rows = numbers[numbers["run"] == name]
        where = titled(style.run_label(name), rows, rows["step"].iloc[0])
        columns = list(rows["position"].unique())
        for direction, ax in zip(DIRECTIONS, row, strict=True):
            own = rows[(rows["direction"] == direction) & (rows["group"] == GROUP)]
            ax.set_title(f"{where}\n{TITLES[direction]}")
            _panel(own, ax, columns)
        row[0].set_ylabel("layer")
    style.letter(list(axes.flat))
    drawn = [ax for ax in axes.flat if ax.images]
    if drawn:
        bar = figure.colorbar(drawn[0].images[0], ax=axes, shrink=0.6, pad=0.02)
        bar.set_label("seemingly toxic prompts: 0 and 1 are the two classes’ means")
        bar.outline.set_visible(False)
    note = "Mean place of the seemingly toxic prompts between the two classes of each direction: 1 "
    note += "as refused (left) or toxic (right) ones, 0 as answered or normal ones. "
    style.footnote(figure, note + notes_on_rows(numbers))
    return figure


def _panel(rows: pd.DataFrame, ax: Axes, columns: list[str]) -> None:
    if rows.empty:
        style.write_reason(ax, "fewer than two prompts in one of both classes")
        return
    layer_map(rows, ax, columns=columns, limits=LIMITS)
