"""Figure 1: (a) refusal rates rise together, (b) refusal probability of three example prompts."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plots import style
from ..plots.lines import group_lines, label_ends
from ..plots.steps import group_sizes, notes_on_rows, step_axis
from ..trajectory import Trajectory
from .measured_tables import example_rows, note_on_examples, refusal_rates, refusal_rows
from .stages import with_stages


@with_stages
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return the refusal rates (panel a) and the refusal probabilities of three prompts (panel b).

    Args:
        runs: the measured runs, by name.

    Returns:
        `panel, run, step, group, value, low, high, prompts, text`; `text` is the example prompt:
        the paper's own where it was measured, else the first prompt of the group.
    """
    rows = refusal_rows(runs)
    rates = refusal_rates(rows[rows["group"] != "normal"])
    examples = example_rows(rows).assign(prompts=1)
    return pd.concat([rates.assign(panel="a"), examples.assign(panel="b")], ignore_index=True)


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a row per run, rates left, example prompts right."""
    names = list(numbers["run"].unique())
    figure, axes = style.panels(len(names), 2, height=2.1)
    for name, row in zip(names, axes, strict=True):
        row[0].set_title(f"{style.run_label(name)}: refusal rate", loc="left")
        row[1].set_title(f"{style.run_label(name)}: three prompts", loc="left")
    style.letter(list(axes.flat))
    style.footnote(figure, f"{_footnote(numbers)} {notes_on_rows(numbers)}".strip())
    for name, row in zip(names, axes, strict=True):
        of_run = numbers[numbers["run"] == name]
        _draw_rates(of_run[of_run["panel"] == "a"], row[0])
        _draw_examples(of_run[of_run["panel"] == "b"], row[1])
    return figure


def _draw_rates(rates: pd.DataFrame, ax: Axes) -> None:
    ax.set(ylim=(-3, 103), ylabel="answers that refuse (%)")
    if rates.empty:
        style.write_reason(ax, "no toxic or seemingly toxic prompts measured")
        return
    step_axis(ax, rates)
    percent = rates.assign(
        value=rates["value"] * 100, low=rates["low"] * 100, high=rates["high"] * 100
    )
    group_lines(percent, ax)


def _draw_examples(examples: pd.DataFrame, ax: Axes) -> None:
    step_axis(ax, examples).set_ylabel("refusal probability\n(sum over phrase set)")
    ax.set_ylim(-0.03, max(1.03, examples["value"].max() * 1.03))
    group_lines(examples.drop(columns=["low", "high"]), ax, labels=False)
    last = examples[examples["step"] == examples["step"].max()]
    texts = [
        (row.value, style.escaped(f"“{row.text}”", 26), style.group_style(row.group).text)
        for row in last.itertuples()
    ]
    label_ends(ax, texts, size=6.5)


def _footnote(numbers: pd.DataFrame) -> str:
    rates, examples = numbers[numbers["panel"] == "a"], numbers[numbers["panel"] == "b"]
    if rates.empty:
        return note_on_examples(examples)
    note = f"Rates: {group_sizes(rates)} prompts, bands are 95 % intervals (Wilson)."
    return f"{note} {note_on_examples(examples)}".strip()
