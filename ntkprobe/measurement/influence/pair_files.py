"""Files of the pairs whose influence is measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...prompts.files import ANSWER_COLUMNS, answer_column, read_rows
from ...prompts.prompt_set import Prompt, PromptSet
from ...prompts.selections import PromptSelection
from .examples import answered

SOURCES = {"general": "normal", "safe": "toxic", "seemingly": "seemingly_toxic"}
"""The groups of the prompts that a run was trained on, by their source."""


def read_updated(file: str | Path, answer: str | None = None) -> PromptSet:
    """Return the pairs of a file, their answer in `response`.

    Args:
        file: as `PromptSet.from_files` reads it, with a column of `ANSWER_COLUMNS`; where nothing
            says the group they are `toxic`.
        answer: the answer of prompts that have none.

    Returns:
        The pairs.

    Raises:
        UserError: if one has no answer.
    """
    rows = PromptSelection.parse(file).rows()
    prompts = PromptSet.from_files([file], otherwise="toxic")
    pairs = [
        replace(prompt, response=_answer(row, prompt) or answer or "")
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    if lacking := [number for number, pair in enumerate(pairs) if not pair.response.strip()]:
        raise UserError(
            f"{file}: the pair in row {lacking[0]} has no answer: give it a column of"
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
    column = answer_column(row)
    return str(row[column]) if column and row[column] else prompt.response
