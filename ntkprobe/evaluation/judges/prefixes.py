"""A prefix filter from a file: refusals of another language, or another model's."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ...errors import UserError
from ...prompts.phrases import PhraseSet, read_phrase_set
from ..verdicts import Item, Verdict
from .keyword_filters import filter_verdicts


@dataclass(frozen=True)
class Prefixes:
    """XSTest's rule with other prefixes: in lower case and stripped, a refusal begins with one.

    It knows no partial refusal, and finds a refusal in mid-sentence no more than XSTest's does.

    Attributes:
        file: as for `--phrases`: the name of a set of phrases, FILE, or NAME=FILE. Of a file its
            `prefixes` count, else its phrases.
    """

    file: str = ""

    asks: ClassVar[str] = "refusal"

    @classmethod
    def of(cls, chosen: PhraseSet) -> "Prefixes":
        """Return the judge of a set that was read."""
        judge = cls(chosen.name)
        judge.__dict__["phrases"] = chosen
        return judge

    @cached_property
    def phrases(self) -> PhraseSet:
        """The set of phrases.

        Raises:
            UserError: where none is named.
        """
        if not self.file:
            raise UserError("--judge prefixes needs its phrases: write prefixes:file=FILE")
        return read_phrase_set(self.file)

    def check(self) -> None:
        """Read the file; a UserError if there is none."""
        assert self.phrases

    @property
    def label(self) -> str:
        """The judge's name in files and tables: the set's."""
        return self.phrases.name

    @property
    def identity(self) -> dict[str, str]:
        """What a verdict depends on: the set's contents."""
        return {"judge": "prefixes", "phrases": self.phrases.label}

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Return a verdict for each item, with the prefix that was found."""
        return filter_verdicts(items, self.phrases.prefix_of)
