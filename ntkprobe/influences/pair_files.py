"""Files of the pairs whose influence is measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..prompt_files import read_rows
from ..prompts import GROUP_COLUMNS, Prompt, PromptSet
from .examples import answered

ANSWER_COLUMNS = ("response", "output", "answer", "completion", "refusal")
"""Names of the column with the answer; the first one present is read."""


SOURCES = {"general": "normal", "safe": "toxic", "seemingly": "seemingly_toxic"}
"""The groups of the prompts that a run was trained on, by their source."""


def read_updated(path: Path, answer: str | None = None) -> PromptSet:
    """Return the pairs of a file, their answer in `response`.

    Args:
        path: as `PromptSet.from_file` reads it, with a column of `ANSWER_COLUMNS`; where no column
            says the group they are `toxic`.
        answer: the answer of prompts that have none.

    Returns:
        The pairs.

    Raises:
        UserError: if one has no answer.
    """
    rows = read_rows(path)
    grouped = any(name in row for row in rows for name in GROUP_COLUMNS)
    prompts = PromptSet.from_file(path, None if grouped else "toxic")
    pairs = [
        replace(prompt, response=_answer(row, prompt) or answer or "")
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    if lacking := [number for number, pair in enumerate(pairs) if not pair.response.strip()]:
        raise UserError(
            f"{path}: the pair in row {lacking[0]} has no answer: give it a column of"
            f" {list(ANSWER_COLUMNS)}, or all of them --answer TEXT"
        )
    return answered(pairs)


def read_recorded(path: Path) -> PromptSet:
    """Return the pairs that a run was trained on, each in the group that its source stands for.

    Args:
        path: the `data.parquet` of a run of `ntkprobe train sft`.

    Returns:
        The pairs of a source in `SOURCES`.

    Raises:
        UserError: if there are no refusals among them.
    """
    rows = read_rows(path)
    pairs = [
        Prompt(str(row["prompt"]), SOURCES[row["source"]], response=str(row.get("response") or ""))
        for row in rows
        if row.get("source") in SOURCES and row.get("prompt")
    ]
    if not any(pair.group == "toxic" for pair in pairs):
        raise UserError(f"{path} names no pairs with source 'safe': give a file with --updated")
    return answered(pairs)


def recorded_data(run: Path | None) -> Path | None:
    """Return what a run of `ntkprobe train sft` was trained on, if it is there.

    Args:
        run: the run, or one of its checkpoints.
    """
    places = [] if run is None else [run, run.resolve().parent]
    return next((p / "data.parquet" for p in places if (p / "data.parquet").is_file()), None)


def _answer(row: dict[str, Any], prompt: Prompt) -> str:
    found = next((row[name] for name in ANSWER_COLUMNS if row.get(name)), None)
    return prompt.response if found is None else str(found)
