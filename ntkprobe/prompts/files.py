"""Reads the rows of a file of prompts, in any supported format; `prompt_set` interprets them.

The columns that hold the prompt, its group and its answer are the same for all readers.
"""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .unicode_text import flaw_within, read_utf8

TEXT_COLUMNS = ("prompt", "instruction", "question", "goal", "trigger", "text")
"""Names of the column with the prompt; the first one present is read.

`text` comes last: beside an `instruction` it often is the whole training text, answer included.
"""

ANSWER_COLUMNS = ("response", "output", "answer", "completion", "refusal")
"""Names of the column with the answer of a pair; the first one that is not empty is read."""

GROUP_COLUMNS = ("group", "label")
"""Names of the column with the group; the first one present is read."""


def columns_of(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of all columns that any row has, in their order."""
    return list(dict.fromkeys(str(name) for record in records for name in record))


def text_column(record: Mapping[str, Any]) -> str | None:
    """Return the name of a row's column with the prompt, None if it has none.

    A column of numbers beside one of texts is no prompt: the `prompt` of what we measured is a row
    number, and its text is in `text`.
    """
    present = [name for name in TEXT_COLUMNS if name in record]
    texts = [name for name in present if not isinstance(record[name], int | float)]
    return next(iter(texts or present), None)


def answer_column(record: Mapping[str, Any]) -> str | None:
    """Return the name of a row's column with the answer, None if it has none."""
    present = [name for name in ANSWER_COLUMNS if name in record]
    return next((name for name in present if record[name]), next(iter(present), None))


def prompt_of(record: Mapping[str, Any]) -> Any:
    """Return the prompt of a row; an Alpaca `input` joins it on a new line.

    Args:
        record: a row; one without a column of prompts, or with an empty one, gives "".
    """
    column = text_column(record)
    text = None if column is None else record[column]
    extra = record.get("input") if column == "instruction" else None
    joined = isinstance(extra, str) and extra.strip() and text
    return f"{text}\n{extra}" if joined else text or ""


def response_of(record: Mapping[str, Any]) -> str:
    """Return the beginning of an answer that a row gives.

    Args:
        record: a row; one without a `response`, or with an empty one, gives "".

    Raises:
        UserError: if it is no text but a list or an object, such as a conversation.
    """
    value = record.get("response")
    if isinstance(value, list | dict):
        raise UserError(f"a response of type {type(value).__name__}: give its text")
    return str(value or "")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return a file's rows; bare strings become rows with a `prompt`.

    Args:
        path: a file in one of the five formats, identified by its suffix; of a text file, every
            line that is not empty is a prompt.

    Returns:
        One dictionary for each row, whose texts are all valid Unicode. NaN, which pandas and JSON
        written from its rows have where a cell is missing, is None.

    Raises:
        UserError: if the file is missing, of another format, or broken.
    """
    readers = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
        ".txt": _read_lines,
    }
    reader = readers.get(path.suffix.lower())
    if not path.is_file():
        raise UserError(f"no file {path}: give a file of prompts, or FILE=GROUP")
    if reader is None:
        raise UserError(f"cannot tell the format of {path}: use one of {sorted(readers)}")
    try:
        rows = reader(path)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"cannot read {path} as {path.suffix[1:].lower()}: {reason}") from error
    records = [{"prompt": row} if isinstance(row, str) else row for row in rows]
    if not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} has rows that are neither texts nor objects with a prompt")
    records = [{key: _missing_as_none(value) for key, value in r.items()} for r in records]
    for number, record in enumerate(records, start=1):
        if flaw := flaw_within(record):
            raise UserError(f"{path}, row {number} {flaw}")
    return records


def _missing_as_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _read_csv(path: Path) -> list[Any]:
    # Not pandas, which reads "NA" as missing and an unquoted comma in every prompt as an index.
    reader = csv.DictReader(io.StringIO(read_utf8(path), newline=""), strict=True)
    _require_distinct(reader.fieldnames or [])
    records = list(reader)
    if crooked := [i for i, r in enumerate(records, start=1) if None in r or None in r.values()]:
        raise ValueError(f"row {crooked[0]} has more or fewer fields than the header")
    return records


def _require_distinct(columns: Sequence[str]) -> None:
    """Refuse two columns of one name, of which a row would hold the last.

    Raises:
        ValueError: naming it; columns without a name, as spreadsheets write them, may be several.
    """
    counts = Counter(columns)
    if twice := [name for name in columns if name.strip() and counts[name] > 1]:
        raise ValueError(f"it has {counts[twice[0]]} columns called {twice[0]!r}: leave one")


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    _require_distinct(table.column_names)
    return table.to_pylist()


def _read_jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return rows


def _read_lines(path: Path) -> list[Any]:
    lines = [line.strip() for line in read_utf8(path).split("\n") if line.strip()]
    first = lines[0] if lines else ""
    fields = {field.strip(" \"'").lower() for field in re.split(r"[,;\t]", first)}
    if fields & set(TEXT_COLUMNS) or first.startswith(("{", "[")):
        raise ValueError(
            "its first line is that of a table or of JSON, and a text file has a prompt a line: "
            "give it the suffix of its format"
        )
    return lines


def _read_json(path: Path) -> list[Any]:
    value = json.loads(read_utf8(path))
    rows = value.get("instructions") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise ValueError('neither a list nor {"instructions": [...]}')
    return rows
