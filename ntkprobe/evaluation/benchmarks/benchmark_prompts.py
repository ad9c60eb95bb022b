"""The prompts of one benchmark that a model is asked, with their source and licence."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from .schema import COLUMNS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class BenchmarkPrompts:
    """The prompts of one benchmark that a model is asked.

    Attributes:
        name: the benchmark's.
        table: columns `COLUMNS`, one row a prompt.
        source: where they were read from.
        licence: of the prompts, where it is known.
        published: how many rows the published file has, where it is known.
        found: rows of the file that was read.
        whole: all prompts, where only some are asked.
    """

    name: str
    table: "pd.DataFrame"
    source: str
    licence: str = "unknown"
    published: int | None = None
    found: int = 0
    whole: int | None = None

    @property
    def note(self) -> str:
        """A warning if the file that was read is not the published one; else empty."""
        if self.published in (None, self.found):
            return ""
        return (
            f"{self.name}: {self.source} has {self.found} rows, the published file "
            f"{self.published}: rates are not comparable with published ones"
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the table, order included."""
        rows = self.table[COLUMNS].to_numpy().tolist()
        return sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()

    def first(self, limit: int | None) -> "BenchmarkPrompts":
        """Return the first `limit` prompts of each kind; all for None.

        Args:
            limit: 1 or more.

        Returns:
            The prompts.

        Raises:
            UserError: if `limit` is less than 1.
        """
        if limit is None:
            return self
        if limit < 1:
            raise UserError(f"--limit {limit}: give 1 or more")
        kept = self.table.groupby("kind", sort=False).head(limit).reset_index(drop=True)
        return replace(self, table=kept, whole=self.whole or len(self.table))

    def record(self) -> dict[str, Any]:
        """Return the record in `run.json`."""
        return {
            "source": self.source,
            "licence": self.licence,
            "published": self.published,
            "found": self.found,
            "prompts": len(self.table),
            "of": self.whole or len(self.table),
            "digest": self.digest,
        }
