r"""Selections of rows of a prompt file, as written on a command line.

    FILE[:COLUMN=VALUE,…][:COLUMN!=VALUE,…][=GROUP]

`xstest.csv:label=safe` is the rows whose column `label` says `safe`; several values of a column are
joined by `,`, and of several columns all have to agree. A name or value that has one of `, : =` in
it is written in quotes, `'` or `"`, doubled where it has that quote in it. FILE is the longest
beginning that is a file, so that its name may hold any of these signs, as in `C:\prompts.csv`.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import columns_of, read_rows

HOW = "FILE:COLUMN=VALUE,VALUE:COLUMN=VALUE=GROUP, a value with one of , : = in quotes"

_SUFFIX = re.compile(r"\.(?:csv|jsonl|json|parquet|txt)(?=[:=]|$)", re.IGNORECASE)
_QUOTED = r""""(?:[^"]|"")*"|'(?:[^']|'')*'"""
_VALUE = rf"(?:{_QUOTED}|[^:=,\"'][^:=,]*)"
_CONDITION = re.compile(rf":({_QUOTED}|[^:=,\"'][^:=,]*?)(!?=)({_VALUE}(?:,{_VALUE})*)")
_BEHIND = re.compile(rf"((?:{_CONDITION.pattern})*)(?:=([^:=,]+))?")
_VALUES_SHOWN = 20


@dataclass(frozen=True)
class Condition:
    """A condition on the value of a row's column.

    Attributes:
        column: its name.
        values: any of them, as text without spaces around it; an empty or missing cell is "".
        excluded: the rows with one of the values are left out instead.
    """

    column: str
    values: tuple[str, ...]
    excluded: bool = False

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Return whether a row meets the condition."""
        return (_written(record.get(self.column)) in self.values) != self.excluded

    def __str__(self) -> str:
        """Return the condition as written on the command line."""
        return f"{self.column}{'!=' if self.excluded else '='}{','.join(self.values)}"


@dataclass(frozen=True)
class PromptSelection:
    """Rows of a file.

    Attributes:
        path: the file.
        conditions: all of them have to hold; none means every row.
        mark: what stands behind the last `=`: a group, or the kind of a benchmark's prompts.
    """

    path: Path
    conditions: tuple[Condition, ...] = ()
    mark: str | None = None

    @classmethod
    def parse(cls, word: str | Path) -> "PromptSelection":
        """Return the selection that a command-line argument writes; the file need not exist.

        Raises:
            UserError: if what stands behind the file cannot be read.
        """
        text = str(word)
        end = _file_ends(text)
        behind = _BEHIND.fullmatch(text, end)
        if behind is None:
            raise UserError(f"cannot read {text[end:]!r} behind {text[:end]}: write {HOW}")
        found = _CONDITION.finditer(behind[1])
        conditions = tuple(
            Condition(_plain(c[1]), tuple(map(_plain, re.findall(_VALUE, c[3]))), c[2] == "!=")
            for c in found
        )
        return cls(Path(text[:end]), conditions, behind.groups()[-1])

    @classmethod
    def of(
        cls, path: str | Path, select: Mapping[str, str | Sequence[str]] | None
    ) -> "PromptSelection":
        """Return the rows of a file whose columns have one of the values given for them."""
        one = str | int | float  # of which a lone one need not be in a list
        chosen = {n: [v] if isinstance(v, one) else v for n, v in (select or {}).items()}
        found = (Condition(name, tuple(map(_written, v))) for name, v in chosen.items())
        return cls(Path(path), tuple(found))

    def unmarked(self) -> "PromptSelection":
        """Return the selection if it names no group.

        Raises:
            UserError: if it does, where groups mean nothing.
        """
        if self.mark is not None:
            raise UserError(f"{self.path}={self.mark}: no group is asked for here, leave it out")
        return self

    def numbered(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the rows with their numbers in the file, counted from 1.

        Raises:
            UserError: if the file cannot be read, or a column or value is not in it.
        """
        records = read_rows(self.path)
        for condition in self.conditions:
            _require_present(condition, records, self.path)
        rows = list(enumerate(records, start=1))
        kept = [(n, r) for n, r in rows if all(each.holds(r) for each in self.conditions)]
        if self.conditions and not kept:
            wanted = " and ".join(map(str, self.conditions))
            raise UserError(f"{self.path}: no row of {len(rows)} has {wanted}: leave one out")
        return kept

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows alone; mistakes are those of `numbered`."""
        return [record for _, record in self.numbered()]

    def __str__(self) -> str:
        """Return the file and the conditions, for messages and records."""
        return ":".join([str(self.path), *map(str, self.conditions)])


def _file_ends(text: str) -> int:
    """Return where the file's name ends: as far as one exists, or looks like one, or at the end."""
    cuts = [len(text), *(i for i in range(len(text) - 1, 0, -1) if text[i] in ":=")]
    exists = next((cut for cut in cuts if os.path.isfile(text[:cut])), None)
    if exists is not None:
        return exists
    ending = _SUFFIX.search(text)
    return ending.end() if ending else len(text)


def _plain(token: str) -> str:
    """Return a name or value without its quotes, or without spaces around it."""
    quote = token[0]
    if quote in "\"'" and len(token) > 1 and token[-1] == quote:
        return token[1:-1].replace(quote * 2, quote).strip()
    return token.strip()


def _written(value: Any) -> str:
    """Return a cell in the form that is compared."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _require_present(
    condition: Condition, records: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Refuse a column or value that no row has: a misspelt one would silently select other rows.

    Raises:
        UserError: naming the columns or values that there are.
    """
    columns = columns_of(records)
    if condition.column not in columns:
        raise UserError(f"{path} has no column {condition.column!r}: its columns are {columns}")
    counts = Counter(_written(record.get(condition.column)) for record in records)
    if lacking := [value for value in condition.values if value not in counts]:
        shown = [f"{value!r} ({count})" for value, count in counts.most_common(_VALUES_SHOWN)]
        more = f" and {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
        raise UserError(
            f"{path}: no row has {lacking[0]!r} in its column {condition.column!r}, which has "
            f"{', '.join(shown)}{more}"
        )
