"""Which layers tie seemingly toxic prompts to toxic ones: the similarity as a sum over parts."""

import pandas as pd
from matplotlib.figure import Figure

from ..errors import UserError
from ..plots import style
from ..plots.bars import stacked_bars
from ..trajectory import Trajectory
from ._means import insist_on_groups, missing

PARTS = {
    "embedding": "#CCBB44",
    "attention": "#332288",
    "MLP": "#88CCEE",
    "norms": "#999999",
    "head": "#117733",
}
"""Colours of the kinds of parts, none of them a group's."""

KINDS = {"mlp": "MLP", "embed": "embedding", "embed+head": "embedding", "norm": "norms"}
PLACES = {"embed+head": "embed\n+head", "norm": "final\nnorm"}


def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return what every part contributes to the mean seemingly-toxic↔toxic similarity.

    K is the sum of its parts' K, and `share` = ⟨K_part, K⟩_F / ‖K‖²_F sums to 1 over them; so
    share × similarity, averaged over pairs, sums to the mean similarity of figure 6. Taken at each
    run's first step, over both directions.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, place, part, contribution`; `place` is a layer's number or the part's name.
    """
    tables = [_contributions(run).assign(run=name) for name, run in runs.items()]
    return pd.concat(tables, ignore_index=True)


def _contributions(run: Trajectory) -> pd.DataFrame:
    """Return the mean contribution of every part at the first step.

    Args:
        run: a measured run.

    Returns:
        `step, place, part, contribution`.

    Raises:
        UserError: if it was not measured by layer.
    """
    parts, kernel = run.parts(), run.kernel()
    if parts.empty:
        raise UserError(missing(run, "kernel by layer", "--by layer --only kernel"))
    insist_on_groups(run, ("seemingly_toxic", "toxic"))
    first = kernel[kernel["step"] == parts["step"].min()]
    across = first["observed_group"] + first["updated_group"]
    pairs = first[across.isin(["seemingly_toxictoxic", "toxicseemingly_toxic"])]
    keys = ["step", "observed", "updated"]
    rows = parts.merge(pairs[[*keys, "similarity"]], on=keys)
    place = rows["layer"].astype("Int64").astype("string").fillna(rows["part"])
    table = rows.assign(place=place, contribution=rows["share"] * rows["similarity"])
    sums = table.groupby(["step", "place", "part"], sort=False)["contribution"].sum() / len(pairs)
    return sums.reset_index()


@style.in_print
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a panel per run on one scale, embedding left, head right."""
    firsts = numbers.groupby("run", sort=False)["step"].first()
    titles = [f"{style.run_label(name)}, step {step}" for name, step in firsts.items()]
    figure, axes = style.row(titles, height=2.6)
    for ax in axes[:: style.ACROSS]:
        ax.set_ylabel("contribution to similarity\nseemingly toxic ↔ toxic")
    table = numbers.assign(place=numbers["place"].astype(str), part=numbers["part"].replace(KINDS))
    top, bottom = _reach(table, above=True) * 1.05, _reach(table, above=False) * 1.05
    sums = table.groupby("run", sort=False)["contribution"].sum()
    told = ", ".join(f"{style.run_label(n)} {value:.2f}" for n, value in sums.items())
    style.footnote(figure, f"The bars sum to the mean similarity, in both directions: {told}.")
    for name, ax in zip(firsts.index, axes, strict=True):
        rows = table[table["run"] == name]
        order = sorted(rows["place"].unique(), key=_depth)
        stacked_bars(rows, ax, x="place", y="contribution", by="part", order=order, colours=PARTS)
        ax.set_xticklabels([PLACES.get(place, place) for place in order])
        ax.set(xlabel="layer", ylim=(bottom, top))
    axes[-1].legend(frameon=False)
    return figure


def _reach(table: pd.DataFrame, *, above: bool) -> float:
    """Return how far the longest stack reaches from zero, upwards or downwards."""
    side = table["contribution"].clip(lower=0) if above else table["contribution"].clip(upper=0)
    stacks = side.groupby([table["run"], table["place"]]).sum()
    return float(stacks.max() if above else stacks.min())


def _depth(place: str) -> tuple[int, int]:
    """Return the position of a part from input to output."""
    ends = {"embed": -2, "embed+head": -1, "norm": 1, "head": 2}
    return (0, int(place)) if place.isdigit() else (ends.get(place, 3), 0)
