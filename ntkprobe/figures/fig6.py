"""Figure 6: mean similarity between groups, of the base model, after DCR, and after its control."""

import math
from collections.abc import Hashable

import pandas as pd
from matplotlib.figure import Figure

from ..plots import style
from ..plots.heatmap import group_map
from ..plots.steps import notes_on_rows, titled
from ..trajectory import Trajectory
from .measured_tables import kernel_means
from .paper_numbers import paper_table
from .stages import stage_by_stage


@stage_by_stage
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return the group means of each run's first measured step.

    Step 0 of the run without DCR is the base model; that of the run after DCR the refined model.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, observed_group, updated_group, similarity, low, high, pairs`.
    """
    return kernel_means(runs, only_first=True).reset_index(drop=True)


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a map per run on one colour scale, values printed."""
    firsts = numbers.groupby("run", sort=False)["step"].first()
    titles = [
        titled(_model(name, step), numbers[numbers["run"] == name], step)
        for name, step in firsts.items()
    ]
    figure, axes = style.row(titles, width=1.0 + 2.6 * min(len(titles), style.ACROSS), height=2.9)
    low = math.floor(numbers["similarity"].min() * 10) / 10
    limits = low, max(math.ceil(numbers["similarity"].max() * 10) / 10, low + 0.1)
    for name, ax in zip(firsts.index, axes, strict=True):
        group_map(numbers[numbers["run"] == name], ax, limits=limits, beside="paper")
    note = "Means over pairs of different prompts."
    if "paper" in numbers and numbers["paper"].notna().any():
        note += " In brackets: the paper's figure 6a, of the base model."
    style.footnote(figure, f"{note} {notes_on_rows(numbers)}".strip())
    bar = figure.colorbar(axes[0].collections[0], ax=axes, shrink=0.75, pad=0.02)
    bar.set_label("mean  ‖K(x′, x)‖$_F$ / ‖K(x′, x′)‖$_F$")
    bar.outline.set_visible(False)
    return figure


def with_paper_values(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return `numbers` with a column `paper`: figure 6a, for base models.

    These are at step 0, or the first stage, of runs whose name tells of no DCR or control.

    Its rows are taken for observed prompts. Panel (b) has no numbers in the paper's text, and the
    model is not stated.

    Args:
        numbers: of this figure.

    Returns:
        The same rows.
    """
    keys = ["observed_group", "updated_group"]
    printed = paper_table("fig6").set_index(keys)["similarity"]
    values = printed.reindex(pd.MultiIndex.from_frame(numbers[keys])).to_numpy()
    refined = numbers["run"].astype(str).str.contains("dcr|control", case=False)
    other = refined | (numbers["step"] > 0)
    return numbers.assign(paper=values).assign(paper=lambda t: t["paper"].mask(other))


def _model(run: Hashable, step: Hashable) -> str:
    """Return the model of a map: at step 0 the base model or that after DCR, else the run's."""
    start = {
        "stl": "base model",
        "stl-aug": "base model",
        "dcr": "after DCR",
        "dcr-stl": "after DCR",
        "control-stl": "after the control",
    }
    label = style.run_label(run)
    return start.get(str(run), label) if step == 0 else label
