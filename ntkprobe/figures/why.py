"""The training pairs that raise the refusal of a seemingly toxic prompt most."""

import pandas as pd
from matplotlib.figure import Figure

from ..errors import UserError
from ..plots import style
from ..plots.bars import ranked_bars
from ..plots.steps import notes_on_rows, step_name
from ..trajectory import Trajectory
from .measured_tables import OTHER_PROMPTS, influence_rows, refusal_rows
from .stages import with_stages

PROMPTS, PAIRS = 4, 3


@with_stages
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return, for the seemingly toxic prompts refused most, the pairs of largest influence.

    Prompts are those with the highest refusal probability at the last step, each at the step from
    which this rose most until the next one measured. Without refusal probabilities, prompts are
    those of largest influence, at the first step.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, prompt, text, refusal, step, rank, updated, updated_text, push`; a pair's push is the
        change of log P_refuse per unit step of gradient descent on it.
    """
    return pd.concat([_pushed(run).assign(run=n) for n, run in runs.items()], ignore_index=True)


def _pushed(run: Trajectory) -> pd.DataFrame:
    """Return the rows of one run.

    Args:
        run: a measured run.

    Returns:
        At most `PROMPTS` × `PAIRS` rows.

    Raises:
        UserError: if it has no influence on seemingly toxic prompts.
    """
    rows = influence_rows(run)
    rows = rows[(rows["observed_group"] == "seemingly_toxic") & (rows["updated_group"] == "toxic")]
    if rows.empty:
        raise UserError(
            f"{run.folder} has no influence of toxic pairs on seemingly toxic prompts: "
            f"{OTHER_PROMPTS}, with toxic pairs in --updated"
        )
    about = _moments(run, rows).rename_axis("observed").reset_index()
    pushes = rows.rename(columns={"change": "push"}).merge(about, on=["observed", "step"])
    best = pushes.sort_values("push", ascending=False).groupby("observed").head(PAIRS)
    order = {prompt: place for place, prompt in enumerate(about["observed"])}
    best = best.sort_values("observed", key=lambda of: of.map(order), kind="stable")
    table = best.rename(columns={"observed": "prompt"}).assign(
        rank=best.groupby("observed").cumcount().to_numpy() + 1,
        text=best["observed"].map(run.prompts.set_index("prompt")["text"]),
        updated_text=best["updated"].map(run.updated.set_index("updated")["text"]),
    )
    columns = ["prompt", "text", "refusal", "step", "rank", "updated", "updated_text", "push"]
    return table[columns]


def _moments(run: Trajectory, rows: pd.DataFrame) -> pd.DataFrame:
    """Return which prompts are shown and when, `step` and `refusal`, the most refused first.

    Args:
        run: a measured run.
        rows: its influence on seemingly toxic prompts.

    Returns:
        At most `PROMPTS` rows, by prompt.
    """
    table = run.refusal()
    if len(table):
        table = refusal_rows({"": run})  # of one set of phrases
    table = table[table["prompt"].isin(rows["observed"])]
    grid = table.pivot(index="step", columns="prompt", values="probability")
    known = grid.loc[grid.index.isin(rows["step"])]
    if known.empty:
        first = rows[rows["step"] == rows["step"].min()]
        pushed = first.groupby("observed")["change"].max().nlargest(PROMPTS).index
        return pd.DataFrame({"step": rows["step"].min(), "refusal": float("nan")}, index=pushed)
    rises = grid.shift(-1).sub(grid).loc[known.index].fillna(-1)
    most = grid.iloc[-1].nlargest(PROMPTS)
    return pd.DataFrame({"step": rises.idxmax()[most.index], "refusal": most})


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: a panel per run, the pairs under the prompt that they push.

    Args:
        numbers: of this figure.

    Returns:
        The figure.
    """
    names = list(numbers["run"].unique())
    lines = max(len(rows) + rows["prompt"].nunique() for _, rows in numbers.groupby("run"))
    figure, axes = style.panels(len(names), 1, height=0.7 + 0.175 * lines)
    for name, ax in zip(names, axes[:, 0], strict=True):
        rows = numbers[numbers["run"] == name]
        headings = {prompt: _heading(own) for prompt, own in rows.groupby("prompt")}
        ranked_bars(
            rows.assign(
                heading=rows["prompt"].map(headings), label=rows["updated_text"].map(_short)
            ),
            ax,
            by="prompt",
            colours=(style.group_style("toxic").colour, style.group_style("normal").colour),
            texts=(style.group_style("seemingly_toxic").text, style.group_style("toxic").text),
        )
        ax.set_title(style.run_label(name))
        ax.set_xlabel("change of log P(refuse) per unit step on the pair")
    style.letter(list(axes[:, 0]))
    style.footnote(
        figure,
        "Bold: the seemingly toxic prompts refused most at the end, and the step from which this "
        "rose most. Below each: the toxic training pairs that then pushed it most. "
        + notes_on_rows(numbers),
    )
    return figure


def _heading(rows: pd.DataFrame) -> str:
    """Return a prompt's text, and where known how probably it is refused in the end, and when."""
    first = rows.iloc[0]
    refused = "" if pd.isna(first["refusal"]) else f"{first['refusal']:.0%} refused, "
    return f"{_short(first['text'])}  ({refused}{step_name(rows, first['step'])})"


def _short(text: str) -> str:
    return style.shortened(text, 60)
