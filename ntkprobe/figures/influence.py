"""Mean influence of training pairs on refusals, group by group: figure 6 with a sign (Eq. 2)."""

import pandas as pd
from matplotlib.figure import Figure

from ..errors import UserError
from ..plots import style
from ..plots.heatmap import group_map
from ..plots.steps import notes_on_rows, titled
from ..trajectory import Trajectory
from .measured_tables import OTHER_PROMPTS, influence_rows
from .stages import stage_by_stage


@stage_by_stage
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return the mean change of log P_refuse by groups, at each run's first and last step.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, observed_group, updated_group, change, raising, pairs`: the change per unit step
        of gradient descent, and the share of prompts and training pairs for which it is positive.
        A prompt and the pair that is learnt on it are left out, as in figure 6.
    """
    return pd.concat([_means(run).assign(run=n) for n, run in runs.items()], ignore_index=True)


def _means(run: Trajectory) -> pd.DataFrame:
    """Return the means of one run's first and last step.

    Raises:
        UserError: if no pair is on another prompt than the observed ones.
    """
    rows = influence_rows(run)
    ends = {rows["step"].min(), rows["step"].max()}
    texts = run.prompts.set_index("prompt")["text"], run.updated.set_index("updated")["text"]
    observed, learnt = rows["observed"].map(texts[0]), rows["updated"].map(texts[1])
    rows = rows[rows["step"].isin(ends) & (observed != learnt)]
    if rows.empty:
        raise UserError(
            f"{run.folder} has no influence of a pair on another prompt: {OTHER_PROMPTS}"
        )
    rows = rows.assign(raising=rows["change"] > 0)
    groups = rows.groupby(["step", "observed_group", "updated_group"], as_index=False, sort=False)
    return groups.agg(
        change=("change", "mean"), raising=("raising", "mean"), pairs=("change", "size")
    )


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a map per run and step, red where refusals rise, blue where they fall.

    Args:
        numbers: of this figure.

    Returns:
        The figure. A step is worth many times more before training than after it: each map has its
        own scale, symmetric about 0.
    """
    parts = list(numbers.groupby(["run", "step"], sort=False))
    titles = [titled(style.run_label(name), rows, step) for (name, step), rows in parts]
    figure, axes = style.row(titles, width=1.0 + 2.6 * min(len(titles), style.ACROSS), height=2.9)
    for (_, table), ax in zip(parts, axes, strict=True):
        largest = float(table["change"].abs().max()) or 1.0
        group_map(
            table,
            ax,
            value="change",
            limits=(-largest, largest),
            colours="RdBu_r",
            form=_signed,
        )
        ax.set(xlabel="learnt pair (x, y)", ylabel="observed prompt x′")
    style.footnote(
        figure,
        "Mean change of log P(refuse | x′) per unit step of gradient descent on (x, y), to first "
        "order, over pairs on other prompts than x′. Red: refused more; blue: less; as deep as it "
        "is large within its map. " + notes_on_rows(numbers),
    )
    return figure


def _signed(change: float) -> str:
    """Return a change with its sign, in three digits or in whole numbers."""
    text = f"{change:+,.0f}" if abs(change) >= 100 else f"{change:+.3g}"
    return text.replace("-", "−")
