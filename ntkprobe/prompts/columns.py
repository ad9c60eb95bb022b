"""The columns of a file that hold the prompt, its group and its answer, for all readers."""

from collections.abc import Iterable, Mapping
from typing import Any

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
