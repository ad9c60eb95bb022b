"""The words of `lexicon.yaml`."""

from typing import Any

import yaml

from .files import FOLDER

_WORDS: dict[str, Any] = yaml.safe_load((FOLDER / "lexicon.yaml").read_text(encoding="utf-8"))


def _things(text: str) -> tuple[str, ...]:
    """Return the things that a line of the lexicon lists."""
    return tuple(thing.strip() for thing in text.split(","))


def _verbs(kind: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return gerund and things of each verb of a kind."""
    entries = {verb: next(iter(entry.items())) for verb, entry in _WORDS[kind].items()}
    return {verb: (gerund, _things(text)) for verb, (gerund, text) in entries.items()}


PERSONS = _things(_WORDS["persons"])
"""With a verb of `DUAL`, a person makes a request harmful; with one of `SOCIAL` it is harmless."""

DUAL, PLAIN = _verbs("dual"), _verbs("plain")
"""Verb to gerund and things. With its things, a verb of `DUAL` is harmless too."""

SOCIAL: dict[str, str] = _WORDS["social"]
NATURE: dict[str, str] = _WORDS["nature"]
"""Verb to gerund."""

NATURAL = _things(_WORDS["natural"])
"""What the verbs of `NATURE` are said of."""
