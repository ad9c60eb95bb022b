"""Directions: how well refusal, over-refusal and toxicity can be read off each layer."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from .. import directions
from ..errors import UserError
from ..plots import style
from ..plots.lines import profile
from ..plots.steps import notes_on_rows, titled
from ..trajectory import Trajectory
from .measured_tables import OTHER_PROMPTS, missing_message
from .stages import stage_by_stage

RESAMPLES, PERMUTATIONS = 999, 199
"""Fewer than elsewhere: there is a bootstrap and a test for every layer, step and run."""
TITLES = {
    "refusal": "Refused, of toxic and normal",
    "over_refusal": "Refused, of seemingly toxic",
    "toxicity": "Toxic, not normal",
}


@stage_by_stage
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return how well each direction tells its classes apart, at each run's first and last step.

    Directions are differences of means of the activations at the prompts' last position; a prompt's
    own activation has no part in the direction that scores it (`ntkprobe.directions`).

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, layer, direction, value` (AUC), `low, high, p_value, positive, negative`.

    Raises:
        UserError: if no run has activations of two classes.
    """
    rows = [row for name, run in runs.items() for row in _rows(name, run)]
    if not rows:
        raise UserError(
            "no direction can be taken: it needs two prompts or more of each of two classes, toxic "
            f"and normal ones, or refused and answered ones at one step: {OTHER_PROMPTS}"
        )
    return pd.DataFrame(rows)


def _rows(name: str, run: Trajectory) -> Iterator[dict[str, Any]]:
    if not (steps := run.direction_steps()):
        raise UserError(missing_message(run, "activations", "--only activations", run.folder))
    for step in sorted({steps[0], steps[-1]}):
        measured = run.directions(step)
        for layer, values in measured.at_answer_start().items():
            for one in measured.classes:
                yield {"run": name, "step": step, "layer": layer} | directions.separation(
                    values, one, resamples=RESAMPLES, permutations=PERMUTATIONS
                )


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a panel per direction, a line per run, dashed for its first step."""
    shown = [name for name in TITLES if name in set(numbers["direction"])]
    figure, grid = style.panels(1, len(shown), width=min(style.PAGE, 2.4 * len(shown)), height=2.7)
    axes = list(grid.flat)
    for name, ax in zip(shown, axes, strict=True):
        rows = numbers[numbers["direction"] == name]
        ax.set_title(TITLES[name])
        ax.axhline(0.5, color="0.5", lw=0.8, ls=":")
        ax.set(xlabel="layer", ylim=(min(0.4, rows["low"].min() - 0.02), 1.02))
        for place, (run, lines) in enumerate(numbers.groupby("run", sort=False)):
            last = lines["step"].max()
            for step, line in lines[lines["direction"] == name].groupby("step"):
                colour = style.run_colour(place)
                profile(
                    line.sort_values("layer"), ax, x="layer", colour=colour, dashed=step != last
                )
                ax.lines[-1].set_label(titled(style.run_label(run), lines, step))
    axes[0].set_ylabel("AUC, held out")
    handles = {line.get_label(): line for ax in axes for line in ax.lines}
    order = [
        titled(style.run_label(run), lines, step)
        for run, lines in numbers.groupby("run", sort=False)
        for step in sorted(lines["step"].unique())
    ]
    labels = [label for label in order if label in handles]
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside upper right",
        ncols=len(labels),
        frameon=False,
    )
    style.letter(axes)
    style.footnote(
        figure,
        "Difference of means at the prompt's last position; each prompt is scored by means without "
        f"it. Bands: 95 % bootstrap intervals, {RESAMPLES} resamples. "
        + ("" if "stage" in numbers else "Dashed: first step. ")
        + f"Dotted: chance. {notes_on_rows(numbers)}",
    )
    return figure
