"""Ordered sets of prompts in groups, with a digest, read from the formats common in the field."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..errors import UserError, require
from ..jupyter import paragraph, table
from .files import GROUP_COLUMNS, TEXT_COLUMNS, columns_of, prompt_of, response_of, text_column
from .selections import PromptSelection
from .unicode_text import flaw_of

if TYPE_CHECKING:
    import pandas as pd

GROUPS = ("normal", "seemingly_toxic", "toxic")
"""The groups in their canonical order."""

XSTEST_LABELS = {"safe": "seemingly_toxic", "unsafe": "toxic"}
"""What XSTest's labels are called here; read so only in a file with XSTest's columns."""

_ROWS_SHOWN = 20


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: what the user says.
        group: one of `GROUPS`.
        id: the prompt's name in its source, if it has one.
        response: the beginning of an answer; given, the position measured is the one after it.
        prefill: what an answer that is learnt begins with, itself not learnt (`train sft`).

    Raises:
        UserError: for an empty text, one that is no valid Unicode, or an unknown group.
    """

    text: str
    group: str
    id: str | None = None
    response: str = ""
    prefill: str = ""

    def __post_init__(self) -> None:
        kind = type(self.text).__name__
        require(isinstance(self.text, str), f"a prompt of type {kind}: give its text")
        require(bool(self.text.strip()), "an empty prompt: every prompt needs text")
        for name in ("text", "response", "id", "prefill"):
            if flaw := flaw_of(str(getattr(self, name) or "")):
                raise UserError(f"the {name} of a prompt {flaw}")
        if self.group not in GROUPS:
            raise UserError(f"unknown group {self.group!r}: choose from {list(GROUPS)}")

    @property
    def answer(self) -> str:
        """The response behind its prefill."""
        return behind(self.prefill, self.response)


def behind(prefill: str, response: str) -> str:
    """Return a response behind its prefill, with a space between them unless one is there."""
    gap = "" if not prefill or prefill[-1].isspace() else " "
    return f"{prefill}{gap}{response}"


@dataclass(frozen=True)
class PromptSet(Sequence[Prompt]):
    """Prompts in a fixed order; everything measured refers to them by their row number.

    Repeated prompts are kept, since dropping a row would renumber the others; `describe` counts
    them and `sample` draws them last.
    """

    prompts: tuple[Prompt, ...]

    @classmethod
    def from_texts(cls, texts: Mapping[str, Sequence[str]]) -> "PromptSet":
        """Return a set from texts by group, as in `PromptSet.from_texts({"toxic": ["…"]})`.

        Args:
            texts: a list of texts for each group; the order of both is kept.

        Returns:
            The prompts.

        Raises:
            UserError: for an unknown or empty group, an empty text, or anything but lists by group.
        """
        if not isinstance(texts, Mapping) or not texts:
            raise UserError(
                f"no groups: give lists of texts by group, one or more of {list(GROUPS)}"
            )
        prompts: list[Prompt] = []
        for group, entries in texts.items():
            if isinstance(entries, str):
                raise UserError(f"group {group!r} is one text: give a list of texts")
            if not entries:
                raise UserError(
                    f"group {group!r} is empty: give at least one text, or leave it out"
                )
            prompts.extend(Prompt(text, group) for text in entries)
        return cls(tuple(prompts))

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        group: str | None = None,
        select: Mapping[str, str | Sequence[str]] | None = None,
    ) -> "PromptSet":
        """Return the prompts of a CSV, JSONL, JSON, Parquet or text file.

        Read are a column out of `TEXT_COLUMNS` (an Alpaca row's non-empty `input` joins its
        `instruction` on a new line), a column out of `GROUP_COLUMNS` and, where present, `id` and
        `response`. JSON may also be a list of strings or `{"instructions": [...]}`; a text file has
        a prompt a line. XSTest's own file is read as it is.

        Args:
            path: the file.
            group: the group of all its prompts, where the file names none.
            select: only rows with one of these values in the columns named, as in
                `{"label": "safe"}`.

        Returns:
            The prompts in the file's order.

        Raises:
            UserError: if the file is missing, unreadable or empty, has no column of prompts or no
                group, a row is empty or of an unknown group, or nothing is selected.
        """  # ruff: ignore[docstring-extraneous-exception]
        return cls(tuple(_prompts(PromptSelection.of(path, select), group)))

    @classmethod
    def from_files(cls, files: Sequence[str | Path], otherwise: str | None = None) -> "PromptSet":
        """Return the prompts of several files, one after the other.

        Args:
            files: paths; `FILE=GROUP` for a file that names no group, `FILE:COLUMN=VALUE` for some
                of its rows (`prompt_selections`).
            otherwise: the group of prompts that nothing names one for.

        Returns:
            The prompts, in the order of the files.

        Raises:
            UserError: as `from_file` does, or if there is no file.
        """
        if not files:
            raise UserError("no prompts: give at least one file, as FILE or FILE=GROUP")
        chosen = [PromptSelection.parse(file) for file in files]
        return cls(tuple(p for one in chosen for p in _prompts(one, _group(one), otherwise)))

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> "PromptSet": ...
    def __getitem__(self, index: int | slice) -> "Prompt | PromptSet":
        """Return one prompt, or a slice as a set."""
        if isinstance(index, slice):
            return PromptSet(self.prompts[index])
        return self.prompts[index]

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        """Return an iterator over the prompts."""
        return iter(self.prompts)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that have prompts, in the canonical order."""
        present = {prompt.group for prompt in self.prompts}
        return tuple(group for group in GROUPS if group in present)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the set holds, order included, as 64 hexadecimal digits."""
        rows = [[p.text, p.group, p.id, *_said(p)] for p in self.prompts]
        return sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()

    def take(self, rows: Sequence[int]) -> "PromptSet":
        """Return the prompts of the given rows, in the order given."""
        return PromptSet(tuple(self.prompts[row] for row in rows))

    def rows(self, group: str) -> tuple[int, ...]:
        """Return the row numbers of a group, which may be none."""
        return tuple(row for row, prompt in enumerate(self.prompts) if prompt.group == group)

    def in_group(self, *groups: str) -> "PromptSet":
        """Return the prompts of these groups, in the set's order.

        Args:
            groups: one or more of `GROUPS`.

        Returns:
            A smaller set.

        Raises:
            UserError: if a group has no prompts.
        """
        rows = {group: self.rows(group) for group in groups}
        if empty := [group for group in groups if not rows[group]]:
            raise UserError(f"no prompts in group {empty[0]!r}: the set has {list(self.groups)}")
        return self.take(sorted(row for found in rows.values() for row in found))

    def sampled_rows(self, per_group: int | None = 25, seed: int = 0) -> tuple[int, ...]:
        """Return the row numbers of a sample of each group, ascending.

        A prompt is drawn by the hash of the seed and itself: the same on every machine, whatever
        the other groups hold, and a smaller sample is part of a larger one. A repeated prompt comes
        last in the draw, so that no pair of equals is sampled while others are left.

        Args:
            per_group: how many of each group at most; None for all.
            seed: another seed, another sample.

        Returns:
            Row numbers.

        Raises:
            UserError: if `per_group` is less than 1.
        """
        if per_group is None:
            return tuple(range(len(self)))
        if per_group < 1:
            raise UserError(f"per_group is {per_group}: give 1 or more")
        order = sorted(range(len(self)), key=lambda row: self._draw(row, seed))
        seen: Counter[str] = Counter()
        kept = []
        for row in order:
            group = self.prompts[row].group
            seen[group] += 1
            if seen[group] <= per_group:
                kept.append(row)
        return tuple(sorted(kept))

    def sample(self, per_group: int | None = 25, seed: int = 0) -> "PromptSet":
        """Return the prompts of `sampled_rows`, in the set's order."""
        return self.take(self.sampled_rows(per_group, seed))

    def _draw(self, row: int, seed: int) -> tuple[bool, bytes, int]:
        prompt = self.prompts[row]
        drawn = sha256(json.dumps([seed, prompt.text, *_said(prompt)]).encode()).digest()
        return row in self._repeats, drawn, row

    @cached_property
    def _repeats(self) -> frozenset[int]:
        first: dict[tuple[str, ...], int] = {}
        keys = [(prompt.text, *_said(prompt)) for prompt in self.prompts]
        return frozenset(row for row, key in enumerate(keys) if first.setdefault(key, row) != row)

    def describe(self) -> str:
        """Return one line: how many prompts of which group, and how many repeat an earlier one."""
        counts = Counter(prompt.group for prompt in self.prompts)
        parts = ", ".join(f"{counts[group]} {group}" for group in self.groups) or "none"
        repeats = f"; {len(self._repeats)} repeat an earlier one" if self._repeats else ""
        return f"{len(self)} prompts: {parts}{repeats}"

    def frame(self) -> "pd.DataFrame":
        """Return a table: prompt (row number), id, group, text, and response where any has one."""
        import pandas as pd

        columns: dict[str, Any] = {
            "prompt": pd.Series(range(len(self)), dtype="int64"),
            "id": pd.Series([p.id for p in self.prompts], dtype="object"),
            "group": [p.group for p in self.prompts],
            "text": [p.text for p in self.prompts],
        }
        for name in ("response", "prefill"):
            if any(getattr(p, name) for p in self.prompts):
                columns[name] = [getattr(p, name) for p in self.prompts]
        return pd.DataFrame(columns)

    def _repr_html_(self) -> str:
        shown = table(self.frame().head(_ROWS_SHOWN), index=False)
        left = len(self) - _ROWS_SHOWN
        more = paragraph(f"… and {left} more") if left > 0 else ""
        return paragraph(self.describe()) + shown + more


def _said(prompt: Prompt) -> tuple[str, ...]:
    """Return a prompt's response, and its prefill if it has one."""
    return (prompt.response, prompt.prefill) if prompt.prefill else (prompt.response,)


def normalised(text: str) -> str:
    """Return a text normalised for comparison: no case, punctuation or spacing, folded Unicode."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def require_groups(file: str | Path) -> None:
    """Refuse a file of pairs with an unknown group, also where groups are not asked for.

    Args:
        file: it, or some of its rows; one without a column of groups has none.

    Raises:
        UserError: naming the first row with such a group.
    """  # ruff: ignore[docstring-extraneous-exception]
    selection = PromptSelection.parse(file)
    numbered, source = selection.numbered(), str(selection.path)
    records = [record for _, record in numbered]
    groups = _groups(records, columns_of(records), source, None, GROUPS[0])
    for (number, _), group in zip(numbered, groups, strict=True):
        known = f"choose from {list(GROUPS)}"
        require(group in GROUPS, f"{source}, row {number}: unknown group {group!r}: {known}")


def _group(selection: PromptSelection) -> str | None:
    """Return the group that a selection names.

    Raises:
        UserError: if there is no such group.
    """
    group = selection.mark
    if group is not None and group not in GROUPS and selection.path.exists():
        place = f"{selection.path}={group}"
        raise UserError(f"unknown group {group!r} in {place!r}: choose from {list(GROUPS)}")
    return group


def _prompts(
    selection: PromptSelection, given_group: str | None, otherwise: str | None = None
) -> Iterator[Prompt]:
    source = str(selection.path)
    numbered = selection.numbered()
    if not numbered:
        raise UserError(f"{source} is empty: it has no prompts")
    records = [record for _, record in numbered]
    columns = columns_of(records)
    if not any(map(text_column, records)):
        raise UserError(
            f"{source} has no prompts: its columns are {columns}, allowed are {list(TEXT_COLUMNS)}"
        )
    groups = _groups(records, columns, source, given_group, otherwise)
    for (number, record), group in zip(numbered, groups, strict=True):
        try:
            yield Prompt(
                prompt_of(record),
                group,
                None if record.get("id") in (None, "") else str(record["id"]),
                response_of(record),
            )
        except UserError as error:
            raise UserError(f"{source}, row {number}: {error}") from None


def _groups(
    records: list[dict[str, Any]],
    columns: list[str],
    source: str,
    given: str | None,
    otherwise: str | None,
) -> list[str]:
    """Return each row's group.

    Args:
        records: the rows.
        columns: their columns.
        source: the file, for messages.
        given: the group of all rows, which may not contradict the file's own.
        otherwise: the group of all rows, where nothing else says it.

    Returns:
        Names of groups, not yet checked.

    Raises:
        UserError: if there is no group, or the given one contradicts the file.
    """
    column = next((name for name in GROUP_COLUMNS if name in columns), None)
    if column is None and given is None:
        if otherwise is not None:
            return [otherwise] * len(records)
        raise UserError(
            f"{source} names no group: its columns are {columns}; add one of {list(GROUP_COLUMNS)} "
            f"or write FILE=GROUP with a group of {list(GROUPS)}"
        )
    labels = [str(record.get(column) or "") for record in records] if column else []
    if {"type", "label", "focus"} <= set(columns):  # XSTest's own file, and no other
        labels = [XSTEST_LABELS.get(label, label) for label in labels]
    if given is None:
        return labels
    if contradicting := sorted(set(labels) & set(GROUPS) - {given}):
        raise UserError(
            f"{source} has prompts of {contradicting} in its column {column!r}: "
            f"leave out the group {given!r}"
        )
    return [given] * len(records)
