"""Sets of refusal phrases from files: other languages, other models' habits, prefix filters.

A set is given by the name of one of `phrases.PHRASE_SETS`, as FILE, or as NAME=FILE. A text file
has a phrase on every line; empty lines, and lines that begin with `#`, count for nothing. A JSON or
YAML file has a list of phrases, or `phrases` and, where answers are to be recognised by others,
`prefixes`.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, one_line
from .phrases import PHRASE_SETS, PhraseSet
from .unicode_text import flaw_within

_NAME = re.compile(r"[\w.-]+")
_LARGEST = 1 << 20  # bytes of a file
_FORMS = "a phrase a line, or JSON or YAML with `phrases` and `prefixes`"


def read_phrase_sets(specs: Sequence[str]) -> tuple[PhraseSet, ...]:
    """Return the sets of `--phrases`, in the order given.

    Args:
        specs: each a name, FILE, or NAME=FILE.

    Returns:
        The sets, whose names are different.

    Raises:
        UserError: if there is no such set or file, it holds no phrases, or two have one name.
    """
    found = [read_phrase_set(spec) for spec in specs]
    names = [each.name for each in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"two sets of --phrases are called {twice[0]!r}: write NAME=FILE to call one something "
            "else"
        )
    return tuple(found)


def read_phrase_set(spec: str) -> PhraseSet:
    """Return one set of `--phrases`.

    Args:
        spec: a name, FILE, or NAME=FILE.

    Raises:
        UserError: if it is none of them.
    """
    if spec in PHRASE_SETS:
        return PhraseSet.named(spec)
    name, equals, file = spec.partition("=")
    path = Path(file if equals and not Path(spec).exists() else spec)
    name = name if path == Path(file) else path.stem
    if not path.is_file():
        raise UserError(
            f"--phrases {spec}: no such file, and no set of that name: choose from "
            f"{sorted(PHRASE_SETS)}, or give a file ({_FORMS})"
        )
    if not _NAME.fullmatch(name) or name in PHRASE_SETS:
        raise UserError(
            f"--phrases {spec}: a set cannot be called {name!r} (letters, digits and _.-, and not "
            f"{', '.join(sorted(PHRASE_SETS))}): write NAME=FILE"
        )
    phrases, prefixes = _contents(path, f"--phrases {spec}")
    return PhraseSet(name, phrases, tuple(p.lower().strip() for p in prefixes or phrases))


def _contents(path: Path, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the phrases and the prefixes of a file, the latter possibly none.

    Raises:
        UserError: if it cannot be read, or holds none.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{where}: larger than {_LARGEST} bytes, which is no list of phrases")
        text = path.read_text("utf-8-sig")
        value: Any = _READERS.get(path.suffix.lower(), _lines)(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{where} cannot be read: {one_line(error)}") from error
    known = isinstance(value, dict) and set(value) <= {"phrases", "prefixes"}
    given = value if known else {"phrases": value}
    phrases, prefixes = given.get("phrases"), given.get("prefixes", [])
    for each in (phrases, prefixes):
        if not isinstance(each, list) or not all(isinstance(p, str) and p.strip() for p in each):
            raise UserError(f"{where}: give a list of texts: {_FORMS}")
    if not phrases:
        raise UserError(f"{where} holds no phrase: {_FORMS}")
    if flaw := flaw_within([*phrases, *prefixes]):
        raise UserError(f"{where} {flaw}")
    return tuple(dict.fromkeys(phrases)), tuple(dict.fromkeys(prefixes))


def _lines(text: str) -> list[str]:
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


_READERS: dict[str, Callable[[str], Any]] = {
    ".json": json.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
}
