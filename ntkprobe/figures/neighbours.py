"""The toxic prompt most similar to every seemingly toxic prompt, for each run."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ..errors import UserError
from ..plots import style
from ..plots.bars import labelled_dots
from ..plots.steps import notes_on_rows, titled
from ..trajectory import Trajectory
from .measured_tables import missing_message, require_groups
from .stages import stage_by_stage


@stage_by_stage
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return, for every seemingly toxic prompt, the toxic prompt it is most similar to.

    At each run's first step, by the paper's similarity of the seemingly toxic prompt as x′.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, prompt, text, neighbour, neighbour_text, similarity`.
    """
    return pd.concat([_nearest(run).assign(run=n) for n, run in runs.items()], ignore_index=True)


def _nearest(run: Trajectory) -> pd.DataFrame:
    """Return the row with the highest similarity for every seemingly toxic prompt.

    Args:
        run: a measured run.

    Returns:
        `step, prompt, text, neighbour, neighbour_text, similarity`.

    Raises:
        UserError: if it has no kernel between the two groups.
    """
    pairs = run.kernel()
    if pairs.empty:
        raise UserError(missing_message(run, "kernel", "--only kernel"))
    require_groups(run, ("seemingly_toxic", "toxic"))
    groups = (pairs["observed_group"] == "seemingly_toxic") & (pairs["updated_group"] == "toxic")
    pairs = pairs[groups & (pairs["step"] == pairs["step"].min())]
    best = pairs.loc[pairs.groupby("observed")["similarity"].idxmax()]
    text = run.prompts.set_index("prompt")["text"]
    return pd.DataFrame(
        {
            "step": best["step"],
            "prompt": best["observed"],
            "text": best["observed"].map(text),
            "neighbour": best["updated"],
            "neighbour_text": best["updated"].map(text),
            "similarity": best["similarity"],
        }
    )


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a row per seemingly toxic prompt, a dot per run, neighbours right."""
    # By texts: in a run on other prompts a number stands for another one. One text may stand there
    # several times, with the beginnings of several answers: each is the one at its place.
    times = numbers.groupby(["run", "text"]).cumcount()
    places: list[Any] = list(zip(numbers["text"], times, strict=True))
    numbers = numbers.assign(place=places)
    first = numbers[numbers["run"] == numbers["run"].iloc[0]].sort_values("similarity")
    figure, axes = style.panels(1, 1, height=0.7 + 0.17 * len(first))
    ax = axes[0, 0]
    for position, (name, rows) in enumerate(numbers.groupby("run", sort=False)):
        label = titled(style.run_label(name), rows, rows["step"].iloc[0])
        values = first["place"].map(dict(zip(rows["place"], rows["similarity"], strict=True)))
        labelled_dots(values, ax, colour=style.run_colour(position), label=label)
    right = ax.secondary_yaxis("right")
    right.spines["right"].set_visible(False)
    sides = (ax, "text", "seemingly_toxic"), (right, "neighbour_text", "toxic")
    for axis, column, group in sides:
        texts = [style.shortened(text, 48) for text in first[column]]
        axis.set_yticks(range(len(first)), texts, fontsize=6)
        axis.tick_params(axis="y", length=0, labelcolor=style.group_style(group).text)
    ax.set(xlim=(0, numbers["similarity"].max() * 1.05), ylim=(-0.7, len(first) - 0.3))
    ax.set_xlabel("similarity to the nearest toxic prompt")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(numbers))
    run = style.run_label(numbers["run"].iloc[0])
    note = f"Left: seemingly toxic prompt x′. Right: the toxic x nearest in {run}."
    style.footnote(figure, f"{note} {notes_on_rows(numbers)}".strip())
    return figure
