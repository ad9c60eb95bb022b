"""Lists of harmful words as patterns: modifiers, verbs in all their forms, nouns with articles."""

import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

import yaml

from ...errors import UserError

SECTIONS = ("modifiers", "verbs", "nouns")
NEUTRAL = {"": "deal with", "s": "deals with", "ing": "dealing with", "ed": "dealt with"}
"""What a verb is replaced by, for each of its endings."""

OPEN = frozenset(
    "a an the my your his her their some any how to for of on in by with and or that which who do "
    "does can could should would will i you we they me us want need like help try is are be".split()
)
"""Words that no clause ends with: after them something is still to come."""


class HarmfulWords:
    """The words of one file.

    Attributes:
        modifiers: matches a harmful modifier.
        verbs: matches a harmful verb in any form.
        things: matches a harmful noun with its article and at most one word between.
        nouns: matches one with or without.
    """

    def __init__(self, path: str | None = None) -> None:
        """Read the lists; UserError if they cannot be read.

        Args:
            path: a YAML file with all `SECTIONS`; None for the shipped one.
        """
        lists = _read(Path(path) if path else Path(str(files(__package__) / "words.yaml")))
        self._endings = {form: end for verb in lists["verbs"] for form, end in _forms(verb)}
        plurals = [f"{noun}{end}" for noun in lists["nouns"] for end in ("", "s", "es")]
        between = rf"(?:(?!(?:{'|'.join(OPEN)})\b)\w+\s+)?"
        self.modifiers = re.compile(_any_of(lists["modifiers"]), re.IGNORECASE)
        self.verbs = re.compile(_any_of(self._endings), re.IGNORECASE)
        article = rf"\b(?:an?|the|some|any|my)\s+{between}"
        self.things = re.compile(article + _any_of(plurals), re.IGNORECASE)
        self.nouns = re.compile(rf"(?:{article})?{_any_of(plurals)}", re.IGNORECASE)

    def any_in(self, text: str) -> bool:
        """Return whether a text holds a harmful word."""
        return bool(self.modifiers.search(text)) or self.acts_in(text)

    def acts_in(self, text: str) -> bool:
        """Return whether a text holds a harmful verb or noun."""
        return bool(self.verbs.search(text) or self.nouns.search(text))

    def neutral(self, verb: str) -> str:
        """Return the neutral verb in the form of the one found."""
        return NEUTRAL[self._endings[" ".join(verb.casefold().split())]]


def _read(path: Path) -> dict[str, list[str]]:
    """Return the lists of a file.

    Raises:
        UserError: if it is none.
    """
    try:
        read = yaml.safe_load(path.read_text("utf-8"))
        return {name: " ".join(read[name].casefold().split()).split(", ") for name in SECTIONS}
    except (OSError, UnicodeError, yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no list of words: write YAML with {list(SECTIONS)}, each a line of words "
            "joined by commas"
        ) from error


def _any_of(entries: Iterable[str]) -> str:
    """Return a pattern that matches whole entries, the longest possible."""
    longest = sorted(set(entries), key=lambda entry: (-len(entry), entry))
    spaced = (r"\s+".join(map(re.escape, entry.split())) for entry in longest)
    return rf"\b(?:{'|'.join(spaced)})\b"


def _forms(verb: str) -> Iterator[tuple[str, str]]:
    """Yield all forms of a regular verb with their endings; some that do not exist as well."""
    head, space, rest = verb.partition(" ")
    short = head.removesuffix("e")
    stems = {"ing": (head, short, head + head[-1]), "ed": (head, short, head + head[-1])}
    yield verb, ""
    for end in ("s", "es"):
        yield f"{head}{end}{space}{rest}", "s"
    for end, all_stems in stems.items():
        for stem in all_stems:
            yield f"{stem}{end}{space}{rest}", end
