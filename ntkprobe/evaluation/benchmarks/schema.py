"""The description of a benchmark, and how the rows of its published file are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import UserError

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("safe", "unsafe")
"""Kinds of prompts: to be answered (safe), or not (unsafe)."""

COLUMNS = ["id", "prompt", "kind", "type", "pair"]
"""Of the table of prompts: `pair` is the id of the prompt's contrast, or empty."""


@dataclass(frozen=True)
class Hub:
    """A dataset on the Hugging Face hub.

    Attributes:
        path: its name.
        config: its configuration, where it has several.
        split: the part that is asked.
    """

    path: str
    config: str | None = None
    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published set of prompts.

    Attributes:
        name: as it is typed, and as its files are called.
        about: one line.
        source: paper, and where the file is.
        licence: of the prompts.
        rows: how many its published file has.
        text: names of the column with the prompt: the published one, then those of known copies.
        kind: `safe` or `unsafe` for all prompts, or the column that says it.
        kinds: what the values of that column mean.
        id: the column with the prompt's name; None for the row's number, from 1.
        type: the column with the prompt's type, if there is one.
        keep: a column and the value that it has in the rows that belong to this benchmark.
        hub: where `datasets` finds it; None for what is a file elsewhere.
        pairs: from the table of prompts to the id of each one's contrast.
    """

    name: str
    about: str
    source: str
    licence: str
    rows: int
    text: tuple[str, ...] = ("prompt",)
    kind: str = "safe"
    kinds: Mapping[str, str] = field(default_factory=dict)
    id: str | None = None
    type: str | None = None
    keep: tuple[str, str] | None = None
    hub: Hub | None = None
    pairs: Callable[["pd.DataFrame"], Sequence[str]] | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that its file must have."""
        label = self.kind if self.kind not in KINDS else None
        wanted = (self.text[0], self.id, self.type, label, self.keep[0] if self.keep else None)
        return list(dict.fromkeys(name for name in wanted if name))

    def table(
        self, numbered: Sequence[tuple[int, Mapping[str, Any]]], where: str
    ) -> "pd.DataFrame":
        """Return the prompts of its published rows, as `COLUMNS`.

        Args:
            numbered: the rows, in their order, each with its number in the file.
            where: they are from, for messages.

        Returns:
            One row a prompt, every value a text.

        Raises:
            UserError: if a column or text is missing, or an id occurs twice.
        """
        present = list(numbered[0][1]) if numbered else []
        text = next((name for name in self.text if name in present), self.text[0])
        if missing := [name for name in (text, *self.columns[1:]) if name not in present]:
            raise UserError(
                f"{where} is not {self.name} as published: it has the columns {present}, "
                f"but no {missing[0]!r}; needed are {self.columns}"
            )
        kept = [(n, r) for n, r in numbered if not self.keep or _said(r, self.keep)]
        return tabulated(
            [
                {
                    "id": str(record[self.id] if self.id else number),
                    "prompt": record[text],
                    "kind": self._kind(record, f"{where}, row {number}"),
                    "type": str(record[self.type] if self.type else ""),
                }
                for number, record in kept
            ],
            where,
            self.pairs,
        )

    def _kind(self, record: Mapping[str, Any], where: str) -> str:
        """Return the kind of a row's prompt.

        Raises:
            UserError: if it is neither.
        """
        if self.kind in KINDS:
            return self.kind
        said = str(record[self.kind]).strip()
        if said not in self.kinds:
            raise UserError(f"{where}: {self.kind} is {said!r}, allowed are {list(self.kinds)}")
        return self.kinds[said]


def tabulated(
    rows: Sequence[dict[str, Any]],
    where: str,
    pairs: Callable[["pd.DataFrame"], Sequence[str]] | None = None,
) -> "pd.DataFrame":
    """Return rows as the table of prompts, each checked.

    Args:
        rows: id, prompt, kind, type.
        where: they are from, for messages.
        pairs: finds contrasts.

    Returns:
        The table, with `pair`.

    Raises:
        UserError: if there are no rows, one has no text, or an id occurs twice.
    """
    import pandas as pd

    if not rows:
        raise UserError(f"{where} has no prompts: give a file with at least one")
    for row in rows:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise UserError(f"{where}: the prompt {row['id']!r} has no text")
    frame = pd.DataFrame(list(rows), columns=COLUMNS[:-1]).astype(object)
    if frame["id"].duplicated().any():
        twice = frame["id"][frame["id"].duplicated()].iloc[0]
        raise UserError(f"{where}: the id {twice!r} occurs twice; every prompt needs its own")
    return frame.assign(pair=list(pairs(frame)) if pairs else "")[COLUMNS]


def _said(record: Mapping[str, Any], wanted: tuple[str, str]) -> bool:
    """Return whether a row's column has the wanted value."""
    return str(record[wanted[0]]).strip().lower() == wanted[1]
