"""Figure 8: activations of seemingly toxic and toxic prompts in the plane, at chosen layers."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plots import style
from ..plots.points import group_points
from ..plots.steps import notes_on_rows, titled
from ..trajectory import Trajectory
from .activation_geometry import GROUPS, classical_scaling, first_and_last, toxic_looking
from .stages import stage_by_stage

PANELS = 4


@stage_by_stage
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return two coordinates of every toxic-looking prompt by classical MDS (A.9).

    Of the last prompt position, which A.9 does not name. At each run's last step, and at four of
    its layers from the first to the last.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, layer, prompt, group, x, y, share`; `share` of the variance is shown.
    """
    tables = [table for name, run in runs.items() for table in _tables(name, run)]
    return pd.concat(tables, ignore_index=True)


def _tables(name: str, run: Trajectory) -> Iterator[pd.DataFrame]:
    """Yield a table for each layer that is shown."""
    step, members = first_and_last(run)[-1], toxic_looking(run)
    layers = run.activations(step)
    shown = np.linspace(0, len(layers) - 1, min(PANELS, len(layers))).round().astype(int)
    for layer in [list(layers)[place] for place in shown]:
        chosen = np.concatenate([members[group] for group in GROUPS])
        groups = np.repeat(GROUPS, [len(members[group]) for group in GROUPS])
        plane, share = classical_scaling(layers[layer][chosen])
        # An axis has no sign of its own: the toxic prompts are on the right, and above.
        middle = plane[groups == "toxic"].mean(axis=0)
        x, y = (plane * np.where(middle < 0, -1, 1)).T
        columns = {"prompt": chosen, "group": groups, "x": x, "y": y, "share": share}
        yield pd.DataFrame({"run": name, "step": step, "layer": layer, **columns})


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a row per run, a panel per layer."""
    names = list(numbers["run"].unique())
    columns = int(numbers.groupby("run")["layer"].nunique().max())
    width = max(style.PAGE * columns / PANELS, style.COLUMN)
    height = 1.65 + 0.6 / len(names)  # legend and footnote are there once
    figure, axes = style.panels(len(names), columns, width=width, height=height)
    for name, row in zip(names, axes, strict=True):
        rows = numbers[numbers["run"] == name]
        for ax, (layer, points) in zip(row, rows.groupby("layer"), strict=False):
            _panel(points, ax, f"layer {layer} ({100 * points['share'].iloc[0]:.0f} %)")
        for ax in row[rows["layer"].nunique() :]:
            ax.set_visible(False)
        row[0].set_ylabel(titled(style.run_label(name), rows, rows["step"].iloc[0]))
    style.group_legend(figure, axes[0, 0])
    note = "Classical MDS of the activations at the last prompt position, each panel to its own"
    note += " scale; in brackets: the share of the variance that the plane shows."
    style.footnote(figure, f"{note} {notes_on_rows(numbers)}".strip())
    return figure


def _panel(points: pd.DataFrame, ax: Axes, title: str) -> None:
    ax.set_title(title)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set(visible=True, color="0.75")
    group_points(points, ax, x="x", y="y")
    ax.set_aspect("equal", adjustable="datalim")
