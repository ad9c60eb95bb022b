"""A row for each method, a column for each benchmark: tables 1, 3 and 4."""

from statistics import NormalDist
from typing import Any

import pandas as pd

from ..evaluation import Evaluation
from ..evaluation.scores import Score
from ..statistics import LEVEL, RESAMPLES, wilson
from .columns import (
    Judges,
    all_verdicts,
    cell,
    in_distribution,
    judged_by,
    measured_columns,
    not_whole,
    score,
)
from .paper_reference import paper_method
from .rendering import Table

TASKS = {
    "mmlu": ("MMLU", "acc"),
    "arc_easy": ("ARC-e", "acc"),
    "arc_challenge": ("ARC-c", "acc_norm"),
    "openbookqa": ("OpenBookQA", "acc_norm"),
    "piqa": ("PIQA", "acc"),
}
"""Abilities, and which of lm-evaluation-harness's metrics is shown first."""
KEYS = {"win rate": "alpaca_eval", **{title: key for key, (title, _) in TASKS.items()}}
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def methods_table(runs: dict[str, Evaluation], judges: Judges, title: str, corner: str) -> Table:
    """Return a row for each run: compliance, safety, abilities and the win rate.

    Args:
        runs: evaluations by the name of their row.
        judges: the judges shown.
        title: of the table.
        corner: what the rows are.

    Returns:
        The table; columns without any number are left out.
    """
    verdicts = all_verdicts(runs)
    columns = list(measured_columns(verdicts))
    refusal, safety = (judges.chosen(verdicts, asks) for asks in ("refusal", "safety"))
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        own = verdicts.loc[verdicts["row"] == name]
        unjudged = run.unjudged(own)
        for column in columns:
            judge = refusal if column.kind == "safe" else safety or refusal
            said = judged_by(judge, column, own, unjudged)
            if len(said):
                place = {"row": name, "column": column.title, "key": column.key}
                rows.append(place | score(said, column))
        rows += [{"row": name} | number for number in (*_abilities(run), *_win_rates(run))]
    marked, trained = in_distribution(runs, columns)
    notes = (*_judge_notes(refusal, safety), *trained, *not_whole(runs, columns))
    return Table(title, corner, _ordered(rows), marked, notes)


def _ordered(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return cells as a frame, its rows in the order in which they came."""
    names = ["row", "column", "key", "value", "low", "high", "count", "of", "digits"]
    return pd.DataFrame(rows, columns=names)


def _abilities(run: Evaluation) -> list[dict[str, Any]]:
    """Return the accuracies of a run with Wilson's intervals, other metrics ± 1.96 errors."""
    cells = []
    measured = run.abilities()
    for task in dict.fromkeys(measured["task"]):
        title, metric = TASKS.get(task, (task, None))
        found = measured.loc[measured["task"] == task].set_index("metric")
        found = found.loc[~found.index.duplicated()]  # of several filters of an answer the first
        metric = metric if metric in found.index else found.index[0]
        value, error, n = found.loc[metric, ["value", "stderr", "n"]]
        if str(metric).startswith("acc") and n and 0 <= value <= 1:
            score = Score(value, *wilson(value * n, int(n)), n, n, "wilson")
        else:
            half = _Z * (float("nan") if pd.isna(error) else error)
            score = Score(value, value - half, value + half, n, n, "normal")
        cells.append({"column": title, "key": task} | cell(score))
    return cells


def _win_rates(run: Evaluation) -> list[dict[str, Any]]:
    """Return the win rates of a run in percent."""
    cells = []
    for found in run.win_rates().to_dict("records"):
        names = ("value", "low", "high", "count", "of", "interval")
        number = cell(Score(*(found[name] for name in names)), digits=1, scale=100)
        title = f"win rate against {found['reference']} ({found['benchmark']})"
        # The paper's win rate is on AlpacaEval and against STL; another one has no number there.
        theirs = (
            "alpaca" in found["benchmark"].lower() and paper_method(found["reference"]) == "stl"
        )
        cells.append({"column": title, "key": "alpaca_eval" if theirs else ""} | number)
    return cells


def _judge_notes(refusal: str | None, safety: str | None) -> tuple[str, ...]:
    """Return notes on the judges and intervals of the numbers."""
    if refusal is None and safety is None:
        return ()
    against = (
        f"share judged safe by {safety}" if safety else f"share refused according to {refusal}"
    )
    return (
        f"Safe prompts: share of compliance according to {refusal}. Unsafe prompts: {against}. "
        "Undetermined verdicts count as neither; (N of M) says how many prompts were judged.",
        "In brackets: 95 % intervals over prompts, Wilson's for rates and accuracies; for win "
        f"rates with ties, bootstrap intervals ({RESAMPLES:,} resamples, seed 0).",
    )
