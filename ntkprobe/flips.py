"""Prompts whose verdict changed: between two steps of a run, or between two evaluated models."""

from typing import Any

import pandas as pd

from .errors import UserError
from .evaluation.results import Evaluation
from .evaluation.verdicts import COMPLIANCE, DISTANCED, PARTIAL, REFUSAL
from .trajectory import Trajectory

BEGAN, STOPPED = "began to be refused", "is answered now"
_KEYS = ["benchmark", "judge", "id"]


def flips_of_run(
    run: Trajectory, before: int | str | None = None, after: int | str | None = None
) -> pd.DataFrame:
    """Return the prompts whose own answer refuses at one of two steps and not at the other.

    Args:
        run: a measured run.
        before: the earlier step, or the name of a stage; None for the first with verdicts.
        after: the later one; None for the last.

    Returns:
        `prompt, id, group, text, before, after, flip, probability_before, probability_after`
        (`before` and `after` are steps, or the names of stages; A.5's P_refuse, the first way to
        sum), `similarity_before, similarity_after` (mean to the
        toxic prompts, where the prompt is in the kernel) and `push` (the summed influence of all
        updated pairs on log P_refuse at `before`, where it was measured); those that began to be
        refused first, then by how much P_refuse changed. An incoherent answer is no verdict.

    Raises:
        UserError: if fewer than two steps have verdicts, or one asked for has none.
    """
    refusal = run.refusal()
    table = refusal.drop_duplicates(["step", "prompt"]).dropna(subset="refuses")
    steps = sorted(table["step"].unique().tolist())
    # An answer that says nothing is no compliance: neither end of a flip.
    table = table[table["refuses"] | ~table["incoherent"].fillna(value=False)]
    if len(steps) < 2:
        raise UserError(
            f"{run.folder} has verdicts on answers at {len(steps)} step{'s'[: len(steps) != 1]}, "
            "and a flip takes two: measure more checkpoints, without --no-generate"
        )
    names = run.stage_names
    first = steps[0] if before is None else _step(run, before, steps)
    last = steps[-1] if after is None else _step(run, after, steps)
    one, two = (table[table["step"] == step].set_index("prompt") for step in (first, last))
    now = two[["refuses", "probability"]].add_suffix("_after")
    both = one.join(now, how="inner")
    changed = both[both["refuses"] != both["refuses_after"]]
    about = run.prompts.set_index("prompt")
    kernel = Trajectory(run.folder, steps=(first, last)).kernel()
    influence = Trajectory(run.folder, steps=[first]).influence()
    pushes = influence[influence["target"] == "refusal_literal"]
    found = pd.DataFrame(
        {
            "id": about["id"].reindex(changed.index),
            "group": changed["group"],
            "text": changed["text"],
            "before": names.get(first, first),
            "after": names.get(last, last),
            "flip": [BEGAN if now else STOPPED for now in changed["refuses_after"]],
            "probability_before": changed["probability"],
            "probability_after": changed["probability_after"],
            "similarity_before": _to_toxic(kernel, first).reindex(changed.index),
            "similarity_after": _to_toxic(kernel, last).reindex(changed.index),
            "push": pushes.groupby("observed")["change"].sum().reindex(changed.index),
        }
    )
    size = (found["probability_after"] - found["probability_before"]).abs()
    order = found.assign(size=size).sort_values(["flip", "size"], ascending=[True, False])
    return order.drop(columns="size").reset_index()


def _step(run: Trajectory, named: int | str, steps: list[int]) -> int:
    """Return the step that a number or the name of a stage means.

    Raises:
        UserError: if it has no verdicts.
    """
    names = run.stage_names
    places = {name: step for step, name in names.items()}
    number = int(named) if str(named).isdecimal() else -1
    step = places.get(str(named), number)
    if step not in steps:
        choice = [names.get(each, each) for each in steps]
        what = "" if names else "step "
        raise UserError(f"{run.folder} has no verdicts at {what}{named}: choose from {choice}")
    return step


def _to_toxic(kernel: pd.DataFrame, step: int) -> pd.Series:
    """Return each kernel prompt's mean similarity to the toxic prompts, itself left out."""
    at = kernel[(kernel["step"] == step) & (kernel["updated_group"] == "toxic")]
    return at[at["observed"] != at["updated"]].groupby("observed")["similarity"].mean()


def flips_between(one: Evaluation, other: Evaluation) -> pd.DataFrame:
    """Return the prompts that a judge calls refused for one of two models and not for the other.

    Args:
        one: the evaluation of the first model, such as a base.
        other: that of the second, on some of the same benchmarks with some of the same judges.

    Returns:
        `benchmark, judge, kind, id, prompt, flip, verdict_before, verdict_after, answer_before,
        answer_after`. A partial refusal counts as answered; what a judge could not judge in either,
        or found incoherent, is left out, and so are prompts that were asked of one model only.

    Raises:
        UserError: if no benchmark was judged by the same refusal judge for both.
    """
    tables = [
        table[
            (table["asks"] == "refusal")
            & table["verdict"].isin([REFUSAL, PARTIAL, COMPLIANCE, DISTANCED])
        ].copy()
        for table in (one.verdicts(), other.verdicts())
    ]
    for table, each in zip(tables, (one, other), strict=True):
        texts = {name: each.prompts(name) for name in table["benchmark"].unique()}
        table["prompt"] = _looked_up(table, texts, "prompt")  # ids may be of different prompts
    keys = [*_KEYS, "prompt"]
    both = tables[0].merge(tables[1][[*keys, "verdict"]], on=keys, suffixes=("_before", "_after"))
    if both.empty:
        raise UserError(
            f"{one.folder} and {other.folder} share no benchmark that the same refusal judge has "
            "judged: evaluate both models with the same --benchmark and --judge"
        )
    refused = [both[f"verdict_{when}"] == REFUSAL for when in ("before", "after")]
    changed = both[refused[0] != refused[1]].copy()
    changed["flip"] = [BEGAN if v == REFUSAL else STOPPED for v in changed["verdict_after"]]
    for when, each in (("before", one), ("after", other)):
        answers = {name: each.answers(name) for name in changed["benchmark"].unique()}
        changed[f"answer_{when}"] = _looked_up(changed, answers, "answer")
    columns = ["benchmark", "judge", "kind", "id", "prompt", "flip", "verdict_before"]
    columns += ["verdict_after", "answer_before", "answer_after"]
    return changed.sort_values(["benchmark", "judge", "flip"], kind="stable")[columns].reset_index(
        drop=True
    )


def _looked_up(rows: pd.DataFrame, tables: dict[str, pd.DataFrame], column: str) -> list[Any]:
    """Return the text of each row, by its benchmark and id; None where there is none."""
    texts = {
        (name, key): text
        for name, table in tables.items()
        for key, text in zip(table["id"], table[column], strict=True)
    }
    return [texts.get(key) for key in zip(rows["benchmark"], rows["id"], strict=True)]
