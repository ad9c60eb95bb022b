"""Evaluations as tables: rates with intervals, judges' agreement, every refused safe prompt."""

from dataclasses import replace
from typing import Any

import pandas as pd

from ..evaluation import Evaluation
from ..evaluation.scores import REFUSED
from ..evaluation.verdicts import SAFE
from ..tables import Table, agreement, pairs, table1, table5
from ..tables.columns import Judges, all_verdicts, measured_columns
from ..tables.comparability import comparability
from .measured import records


def tables_of(evaluations: dict[str, Evaluation]) -> list[dict[str, Any]]:
    """Return the tables that have numbers: methods, judges, their agreement, pairs.

    Args:
        evaluations: evaluated models, by name.

    Returns:
        For each `name`, `title`, `corner`, `notes`, `marked` (columns trained on), `pictured`
        (those of verdicts) and `numbers`, tidy as `ntkprobe table --format csv` has them.
    """
    modules = {"1": table1, "5": table5, "agreement": agreement, "pairs": pairs}
    if not evaluations:
        return []
    made = {name: module.table(evaluations, Judges()) for name, module in modules.items()}
    pictured = [one.title for one in measured_columns(all_verdicts(evaluations))]
    notes = comparability(evaluations)
    return [
        _contents(name, replace(table, notes=(*table.notes, *notes)), pictured)
        for name, table in made.items()
        if len(table.numbers)
    ]


def _contents(name: str, table: Table, pictured: list[str]) -> dict[str, Any]:
    """Return a table as the page shows it; its columns of verdicts are drawn, too."""
    return {
        "name": name,
        "title": table.title,
        "corner": table.corner,
        "notes": list(table.notes),
        "marked": sorted(table.marked),
        "pictured": pictured,
        "numbers": records(table.numbers.drop(columns="key", errors="ignore")),
    }


def refused_safe_prompts(evaluations: dict[str, Evaluation]) -> dict[str, list[Any]]:
    """Return every safe prompt that was refused, wholly or in part, according to a refusal judge.

    Args:
        evaluations: evaluated models, by name.

    Returns:
        `method, benchmark, id, type, prompt, answer, verdicts` (of each judge: its verdict).
    """
    rows: list[dict[str, Any]] = []
    for name, run in evaluations.items():
        verdicts = run.verdicts()
        safe = verdicts[(verdicts["kind"] == SAFE) & (verdicts["asks"] == "refusal")]
        positive = safe[safe["verdict"].isin(list(REFUSED))]
        refused = set(zip(positive["benchmark"], positive["id"], strict=True))
        for (benchmark, id_), said in safe.groupby(["benchmark", "id"], sort=False):
            if (benchmark, id_) in refused:
                verdicts_of = zip(said["judge"], said["verdict"], strict=True)
                text = ", ".join(f"{judge}: {verdict}" for judge, verdict in verdicts_of)
                row = {"method": name, "benchmark": benchmark, "id": id_, "verdicts": text}
                rows.append(row)
    table = pd.DataFrame(rows, columns=["method", "benchmark", "id", "verdicts"])
    answered = table.merge(_answered(evaluations), on=["method", "benchmark", "id"], how="left")
    return records(answered)


def _answered(evaluations: dict[str, Evaluation]) -> pd.DataFrame:
    """Return every prompt asked: `method, benchmark, id, type, kind, prompt, answer`."""
    columns = ["method", "benchmark", "id", "type", "kind", "prompt", "answer"]
    tables = [
        run.prompts(name)
        .merge(run.answers(name)[["id", "answer"]], on="id", how="left")
        .assign(method=method, benchmark=name)[columns]
        for method, run in evaluations.items()
        for name in run.benchmarks
    ]
    if not tables:
        return pd.DataFrame(columns=columns)
    table = pd.concat(tables, ignore_index=True)
    return table.assign(answer=table["answer"].astype(object).where(table["answer"].notna(), None))


def answers_to(evaluations: dict[str, Evaluation], texts: list[str]) -> dict[str, list[Any]]:
    """Return the stored answers to some prompts, matched by their texts.

    Args:
        evaluations: evaluated models, by name.
        texts: of the prompts of a measurement.

    Returns:
        `prompt` (position in `texts`), `method`, `benchmark`, `answer`, `verdicts`.
    """
    table = _answered(evaluations)
    table = table[table["prompt"].isin(texts) & table["answer"].notna()]
    said = {
        (name, *key): ", ".join(
            f"{j}: {v}" for j, v in zip(of["judge"], of["verdict"], strict=True)
        )
        for name, run in evaluations.items()
        for key, of in run.verdicts().groupby(["benchmark", "id"])
    }
    place = {text: position for position, text in reversed(list(enumerate(texts)))}
    keys = zip(table["method"], table["benchmark"], table["id"], strict=True)
    return {
        "prompt": [place[text] for text in table["prompt"]],
        "method": table["method"].tolist(),
        "benchmark": table["benchmark"].tolist(),
        "answer": table["answer"].tolist(),
        "verdicts": [said.get(key, "") for key in keys],
    }
