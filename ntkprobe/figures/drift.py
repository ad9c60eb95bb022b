"""How directions turned and groups moved inside the model, from stage to stage."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import UserError
from ..plots import style
from ..plots.steps import notes_on_rows, step_name
from ..trajectory import Trajectory
from .measured_tables import OTHER_PROMPTS, missing_message
from .stages import with_stages

COLOURS = {"refusal": "#117733", "over_refusal": "#DDAA33", "toxicity": "#BB5566"}
POSITION = "answer_start"


@with_stages
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return the drift of directions and of groups' means, layer by layer.

    Of named stages from each to the next, and from the first to the last; of a run's checkpoints
    from the first to the last. At every named position.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, since, since_name, position, layer, what, name, value`: of a `direction` the
        cosine before and after; of a `centroid` how far a group's mean moved, in units of the
        prompts' mean distance from it before.

    Raises:
        UserError: if no run has activations at named positions of two comparable steps.
    """
    tables = []
    for name, run in runs.items():
        if len(run.direction_steps()) < 2:
            raise UserError(
                missing_message(run, "directions of two steps", "--only directions", run.folder)
            )
        table = run.direction_drift()
        names, steps = run.stage_names, run.direction_steps()
        ends = (table["since"] == steps[0]) & (table["step"] == steps[-1])
        after = table["step"].map(dict(zip(steps[1:], steps[:-1], strict=True)))
        onwards = after == table["since"]
        rows = pd.concat([table[onwards], table[ends & ~onwards]]) if names else table[ends]
        since_names = [names.get(since, f"{run.step_unit} {since}") for since in rows["since"]]
        tables.append(rows.assign(run=name, since_name=since_names))
    whole = pd.concat(tables, ignore_index=True)
    if whole.empty:
        raise UserError("no two steps can be compared: they have other layers, or another width")
    whole = whole[whole["value"].notna()]  # a group of one prompt has no distance from its mean
    if whole.empty:
        raise UserError(f"no group of two prompts, whose mean could move: {OTHER_PROMPTS}")
    columns = ["run", "step", "since", "since_name", "position", "layer", "what", "name", "value"]
    return whole[columns]


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a row per pair of steps, cosines of directions left, centroids right."""
    rows = numbers[numbers["position"] == POSITION]
    pairs = list(rows.groupby(["run", "since", "step"], sort=False))
    figure, axes = style.panels(len(pairs), 2, height=1.9)
    several = rows["run"].nunique() > 1
    farthest = rows.loc[rows["what"] == "centroid", "value"].max() * 1.05 or 1.0
    for ((name, _, step), table), (left, right) in zip(pairs, axes, strict=True):
        since = style.escaped(str(table["since_name"].iloc[0]))
        whose = f"{style.run_label(name)}: " if several else ""
        title = f"{whose}{since} ⟶ {step_name(table, step)}"
        _lines(table[table["what"] == "direction"], left, title)
        left.set(ylabel="cosine of directions", ylim=(min(-0.05, rows["value"].min() - 0.05), 1.05))
        _lines(table[table["what"] == "centroid"], right, title)
        right.set(ylabel="centroid moved", ylim=(0, farthest))
    for ax in axes[-1]:
        ax.set_xlabel("layer")
    style.letter(list(axes.flat))
    for ax in axes[0]:
        if ax.lines:
            ax.legend(frameon=False, fontsize=6.5)
    note = "Where the answer begins. Left: cosine of a direction at both stages, between the same "
    note += "prompts, in the classes of the later one. Right: how far a group's mean moved, over "
    note += "the mean distance of its prompts from it before. "
    style.footnote(figure, note + notes_on_rows(numbers))
    return figure


def _lines(rows: pd.DataFrame, ax: Axes, title: str) -> None:
    for name, line in rows.groupby("name", sort=False):
        known = str(name) in COLOURS
        colour = COLOURS[str(name)] if known else style.group_style(name).colour
        label = str(name).replace("_", " ")
        ordered = line.sort_values("layer")
        wide = 3.5 if name == "refusal" else 1.4  # it may lie under the line of toxicity
        ax.plot(ordered["layer"], ordered["value"], color=colour, marker="o", label=label, lw=wide)
    if rows.empty:
        style.write_reason(ax, "fewer than two prompts in one of both classes")
    ax.set_title(title)
