"""One run's similarities, refusals and kernel drift against the step."""

import pandas as pd
from matplotlib.axes import Axes

from .lines import group_lines, pair_lines
from .steps import step_axis
from .style import in_order

_ACROSS = ("seemingly_toxic", "toxic")


def similarity_lines(means: pd.DataFrame, ax: Axes) -> Axes:
    """Return `ax` with mean similarities and their bands, a line per ordered pair of groups."""
    ax.set_ylim(0, means["high"].max() * 1.04)
    pair_lines(means, ax, emphasised=_ACROSS)
    step_axis(ax, means).set(ylabel="mean  ‖K(x′, x)‖$_F$ / ‖K(x′, x′)‖$_F$")
    return ax


def refusal_lines(means: pd.DataFrame, ax: Axes) -> Axes:
    """Return `ax` with mean refusal probabilities, a line for every group."""
    group_lines(means, ax, y="probability")
    step_axis(ax, means).set(ylabel="mean refusal probability")
    return ax


def drift_lines(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one minus the cosine with the first kernel: whole, and for every pair of groups.

    K(x, x′) is the transpose of K(x′, x) and has the same drift: one line is drawn for both.

    Args:
        table: `step, observed_group, updated_group, drift`; the whole kernel has no groups.
        ax: where to.

    Returns:
        `ax`.
    """
    ax.set_ylim(0, (table["drift"].max() * 1.04) or 1.0)
    whole = table[table["observed_group"].isna()]
    (line,) = ax.plot(whole["step"], whole["drift"], color="0.2", ls=":", lw=1.8)
    line.set(label="whole kernel", marker="o" if len(whole) == 1 else "")
    pairs = table.dropna(subset="observed_group")
    order = {group: place for place, group in enumerate(in_order(pairs["observed_group"]))}
    once = pairs["observed_group"].map(order) <= pairs["updated_group"].map(order)
    pair_lines(pairs[once], ax, emphasised=_ACROSS, y="drift")
    ax.legend(frameon=False, loc="upper left", fontsize=7.5)
    step_axis(ax, table).set(ylabel="1 − cos(K$_t$, K$_0$)")
    return ax
