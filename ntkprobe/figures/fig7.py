"""Figure 7: how well k-means separates seemingly toxic from toxic prompts, layer by layer."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plots import style
from ..plots.lines import label_ends, profile
from ..plots.steps import notes_on_rows, span, titled
from ..statistics import wilson
from ..trajectory import Trajectory
from .activation_geometry import GROUPS, correctly_clustered, first_and_last, toxic_looking
from .paper_numbers import paper_value
from .stages import stage_by_stage


@stage_by_stage
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return the accuracy of two clusters at every layer, at each run's first and last step.

    As in A.9, k-means on each layer's activations, clusters aligned with the groups by the
    Hungarian algorithm; A.9 does not say of which position, here it is the prompt's last. The
    interval is Wilson's, over prompts.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, layer, value, low, high, prompts, chance`; `chance` is the larger group's share.
    """
    return pd.DataFrame([row for name, run in runs.items() for row in _rows(name, run)])


def _rows(name: str, run: Trajectory) -> Iterator[dict[str, Any]]:
    """Yield a row for each layer of both steps."""
    steps, members = first_and_last(run), toxic_looking(run)
    chosen = np.concatenate([members[group] for group in GROUPS])
    labels = np.repeat([0, 1], [len(members[group]) for group in GROUPS])
    chance = max(labels.mean(), 1 - labels.mean())
    for step in steps:
        for layer, values in run.activations(step).items():
            right = correctly_clustered(values[chosen], labels)
            low, high = wilson(right.sum(), len(right))
            yield {
                "run": name,
                "step": step,
                "layer": layer,
                "value": right.mean(),
                "low": low,
                "high": high,
                "prompts": len(right),
                "chance": chance,
            }


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a line per run, dashed for its first step."""
    figure, (ax,) = style.row(["Seemingly toxic or toxic? Two clusters"], width=4.6, height=2.6)
    ax.set(xlabel="layer", ylabel="prompts in the right cluster (%)", ylim=(_floor(numbers), 103))
    ax.set_xticks(_ticks(numbers["layer"]))
    style.footnote(figure, f"{_footnote(numbers)} {notes_on_rows(numbers)}".strip())
    ends: list[tuple[float, str, str]] = []
    shares = numbers["chance"].unique().tolist()
    for chance in shares:
        ax.axhline(100 * chance, color="0.5", lw=0.8, ls=":")
        names = numbers.loc[numbers["chance"] == chance, "run"].unique()
        whose = f", {', '.join(map(style.run_label, names))}" if len(shares) > 1 else ""
        ends.append((100 * chance, f"larger group's share{whose}", "0.4"))
    for position, (name, rows) in enumerate(numbers.groupby("run", sort=False)):
        ends += _draw_run(rows, ax, style.run_label(name), style.run_colour(position))
    if "paper_bound" in numbers:
        bound = numbers["paper_bound"].max() * 100
        ax.axhline(bound, color="0.2", lw=0.8, ls="-.")
        ends.append((bound, f"paper: below {bound:.0f} %", "0.2"))
    label_ends(ax, ends, size=6.5)
    return figure


def _draw_run(
    rows: pd.DataFrame, ax: Axes, label: str, colour: str
) -> list[tuple[float, str, str]]:
    """Return the labels of a run's lines, once they are drawn."""
    ends = []
    for step, layers in rows.groupby("step"):
        line = layers.sort_values("layer")
        percent = line.assign(**{c: line[c] * 100 for c in ("value", "low", "high")})
        profile(percent, ax, x="layer", colour=colour, dashed=step != rows["step"].max())
        ends.append((percent["value"].iloc[-1], titled(label, rows, step), colour))
    return ends


def _floor(numbers: pd.DataFrame) -> float:
    """Return where the axis begins: below every interval."""
    return min(40.0, numbers["low"].min() * 100 - 2)


def _ticks(layers: pd.Series) -> list[int]:
    """Return at most nine of the layers, evenly spaced where they are."""
    found = sorted(set(layers))
    return found[:: -(-len(found) // 9)]


def _footnote(numbers: pd.DataFrame) -> str:
    several = numbers.groupby("run")["step"].nunique().max() > 1
    return f"{span(numbers['prompts'])} prompts; band: 95 % interval over prompts (Wilson)." + (
        " Dashed: first step." * bool(several)
    )


def with_paper_values(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return `numbers` with what A.9 says of the best layer of its safety-aligned models.

    Args:
        numbers: of this figure.

    Returns:
        The same rows; `paper_bound` is set at the best layer of each run's last step.
    """
    last = numbers[numbers["step"] == numbers.groupby("run")["step"].transform("max")]
    best = last.groupby("run")["value"].idxmax()
    bound = pd.Series(paper_value("text", "kmeans_accuracy_below"), index=best)
    return numbers.assign(paper_bound=bound)
