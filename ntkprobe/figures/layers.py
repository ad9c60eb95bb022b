"""Similarity of seemingly toxic and toxic prompts as a sum over the parts of a model."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import UserError
from ..plots import style
from ..plots.bars import stacked_bars
from ..plots.steps import notes_on_rows, titled
from ..trajectory import Trajectory
from .measured_tables import missing_message, require_groups
from .stages import stage_by_stage

DIRECTIONS = (("seemingly_toxic", "toxic"), ("toxic", "seemingly_toxic"))
"""Observed and updated group."""

PARTS = {
    "embedding": "#CCBB44",
    "attention": "#332288",
    "MLP": "#88CCEE",
    "norms": "#999999",
    "head": "#117733",
}
"""Colours of the kinds of parts, none of them a group's."""

KINDS = {"mlp": "MLP", "embed": "embedding", "embed+head": "embedding", "norm": "norms"}
MOST_LABELS = 10
"""Layers with a label each; of more, every second, fifth, tenth and so on has one."""

PLACES = {"embed": "embed", "head": "head", "embed+head": "embed\n+head", "norm": "final\nnorm"}


@stage_by_stage
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return what every part contributes to the similarity of seemingly toxic and toxic prompts.

    K is the sum of its parts' K, and `share` = ⟨K_part, K⟩_F / ‖K‖²_F sums to 1 over them; so
    share × similarity, averaged over pairs, sums to the mean similarity of figure 6. Taken at each
    run's first step, for each of the two directions.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, observed_group, updated_group, place, part, contribution`; `place` is a layer's
        number or the part's name.
    """
    tables = [_contributions(run).assign(run=name) for name, run in runs.items()]
    return pd.concat(tables, ignore_index=True)


def _contributions(run: Trajectory) -> pd.DataFrame:
    """Return the mean contribution of every part at the first step, by direction.

    Args:
        run: a measured run.

    Returns:
        `step, observed_group, updated_group, place, part, contribution`.

    Raises:
        UserError: if it was not measured by layer.
    """
    parts, kernel = run.parts(), run.kernel()
    if parts.empty:
        raise UserError(missing_message(run, "kernel by layer", "--by layer --only kernel"))
    require_groups(run, ("seemingly_toxic", "toxic"))
    first = kernel[kernel["step"] == parts["step"].min()]
    keys, direction = ["step", "observed", "updated"], ["observed_group", "updated_group"]
    index = pd.MultiIndex.from_frame(first[direction])
    pairs = first[index.isin(DIRECTIONS)]
    rows = parts.merge(pairs[[*keys, *direction, "similarity"]], on=keys)
    place = rows["layer"].astype("Int64").astype("string").fillna(rows["part"])
    table = rows.assign(place=place, contribution=rows["share"] * rows["similarity"])
    sums = table.groupby(["step", *direction, "place", "part"], sort=False)["contribution"].sum()
    return (sums / pairs.groupby(direction).size()).rename("contribution").reset_index()


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a row per run, a panel per direction, embedding left, head right."""
    firsts = numbers.groupby("run", sort=False)["step"].first()
    figure, axes = style.panels(len(firsts), len(DIRECTIONS), height=2.3)
    table = numbers.assign(place=numbers["place"].astype(str), part=numbers["part"].replace(KINDS))
    limits = _reach(table, above=False) * 1.05, _reach(table, above=True) * 1.05
    for (name, step), row in zip(firsts.items(), axes, strict=True):
        of_run = table[table["run"] == name]
        for (observed, updated), ax in zip(DIRECTIONS, row, strict=True):
            ends = (of_run["observed_group"] == observed) & (of_run["updated_group"] == updated)
            _panel(of_run[ends], ax)
            pair = f"{style.group_style(observed).label} ← {style.group_style(updated).label}"
            mean = of_run.loc[ends, "contribution"].sum()
            where = titled(style.run_label(name), of_run, step)
            ax.set_title(f"{where}\n{pair}: {mean:.2f}")
            ax.set_ylim(*limits)
        row[0].set_ylabel("contribution to similarity")
    style.letter(list(axes.flat))
    axes[0, -1].legend(frameon=False)
    note = "Observed ← updated. The bars of a panel sum to the mean similarity in its title."
    style.footnote(figure, f"{note} {notes_on_rows(numbers)}".strip())
    return figure


def _panel(rows: pd.DataFrame, ax: Axes) -> None:
    """Draw the contributions to one direction of one run."""
    order = sorted(rows["place"].unique(), key=_depth)
    stacked_bars(rows, ax, x="place", y="contribution", by="part", order=order, colours=PARTS)
    ax.set_xticklabels(_labels(order))
    ax.set_xlabel("layer")


def _labels(order: list[str]) -> list[str]:
    """Return what stands below each place: of many layers some, away from both ends."""
    layers = sum(place.isdigit() for place in order)
    if layers <= MOST_LABELS:
        return [PLACES.get(place, place) for place in order]
    every = next(step for step in (2, 5, 10, 20, 50, 100) if layers <= step * MOST_LABELS)
    shown = {str(layer) for layer in range(every, layers - every // 2, every)}
    return [place if place in shown else PLACES.get(place, "") for place in order]


def _reach(table: pd.DataFrame, *, above: bool) -> float:
    """Return how far the longest stack reaches from zero, upwards or downwards."""
    side = table["contribution"].clip(lower=0) if above else table["contribution"].clip(upper=0)
    stacks = side.groupby([table[column] for column in ("run", "observed_group", "place")]).sum()
    return float(stacks.max() if above else stacks.min())


def _depth(place: str) -> tuple[int, int]:
    """Return the position of a part from input to output."""
    ends = {"embed": -2, "embed+head": -1, "norm": 1, "head": 2}
    return (0, int(place)) if place.isdigit() else (ends.get(place, 3), 0)
