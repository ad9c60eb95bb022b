"""Prompts from a user's file with a column for the text and one for its kind."""

import re
from collections.abc import Mapping
from typing import Any

from ...errors import UserError
from ...prompts.files import (
    GROUP_COLUMNS,
    TEXT_COLUMNS,
    columns_of,
    prompt_of,
    text_column,
)
from ...prompts.selections import PromptSelection
from .benchmark_prompts import BenchmarkPrompts
from .catalogue import BENCHMARKS
from .schema import tabulated

_KIND_COLUMNS = ("kind", *GROUP_COLUMNS)
_OWN_KINDS = {
    "safe": "safe",
    "unsafe": "unsafe",
    "normal": "safe",
    "seemingly_toxic": "safe",
    "toxic": "unsafe",
}


def read_own(
    file: PromptSelection, name: str | None = None, licence: str = "unknown"
) -> BenchmarkPrompts:
    """Return the prompts of a file that is no published benchmark.

    Args:
        file: CSV, JSONL, JSON or Parquet, or some of its rows; its mark is the kind of all of them,
            where it does not say.
        name: else the file's.
        licence: if it is known.

    Returns:
        Its prompts.

    Raises:
        UserError: if a column is missing, or a kind is none.
    """
    path, kind = file.path, file.mark
    numbered = file.numbered()
    records = [record for _, record in numbered]
    columns = columns_of(records)
    column = next((column for column in _KIND_COLUMNS if column in columns), None)
    if not any(map(text_column, records)):
        raise UserError(
            f"{path} has no prompts: its columns are {columns}, needed is one of "
            f"{list(TEXT_COLUMNS)}"
        )
    if column is None and kind is None:
        raise UserError(
            f"{path} does not say what its prompts are: add a column kind (safe or unsafe), or "
            f"write {path}=safe or {path}=unsafe"
        )
    rows = [
        {
            "id": str(record.get("id") or number),
            "prompt": prompt_of(record),
            "kind": kind or _own_kind(record, str(column), f"{path}, row {number}"),
            "type": str(record.get("type") or (record.get("group") or "")),
        }
        for number, record in numbered
    ]
    table = tabulated(rows, str(path))
    paired = [str(record.get("pair") or "") for record in records]
    label, source = name or _file_name(file), name or str(file)
    return BenchmarkPrompts(label, table.assign(pair=paired), source, licence, None, len(records))


def _own_kind(record: Mapping[str, Any], column: str, where: str) -> str:
    """Return the kind of prompt in a row of a user's file.

    Raises:
        UserError: if it is not an allowed one.
    """
    said = str(record.get(column) or "").strip()
    if said not in _OWN_KINDS:
        raise UserError(f"{where}: {column} is {said!r}, allowed are {list(_OWN_KINDS)}")
    return _OWN_KINDS[said]


def _file_name(file: PromptSelection) -> str:
    """Return the name of a benchmark from its file's name and selection, fit for file names."""
    said = "_".join([file.path.stem, *map(str, file.conditions)])
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", said).strip("._")
    return f"own_{name}" if not name or name in (*BENCHMARKS, "tiny") else name
