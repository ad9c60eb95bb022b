"""Judges from the arguments of `--judge`.

A judge is given as NAME, as NAME:KEY=VALUE,KEY=VALUE with its settings, or as LABEL=NAME:… with
another label in files and tables, which several judges of one kind need.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from .. import plugins
from ..errors import UserError
from ..prompts.phrases import read_phrase_sets
from . import judges
from .judges.prefixes import Prefixes
from .server import Server
from .verdicts import Judge

DEFAULT = ("xstest_prefixes", "scans_strings", "or_bench_strings")
"""The keyword filters, which need no model."""

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def read_judges(words: Sequence[str]) -> dict[str, Judge]:
    """Return the judges that arguments of `--judge` name, by label.

    Args:
        words: such as `llama_guard` or `strict=llm:base_url=http://localhost:8000/v1,model=M`.

    Returns:
        Judges in the order given.

    Raises:
        UserError: if there is no such judge or setting, or two have the same label.
    """
    found: dict[str, Judge] = {}
    for word in words:
        label, judge = _read(word)
        if label in found:
            raise UserError(
                f"two judges are called {label!r}: write LABEL={word} to call one something else"
            )
        found[label] = judge
    return found


def with_phrase_sets(judges: Mapping[str, Judge], specs: Sequence[str]) -> dict[str, Judge]:
    """Return judges with one more for each set of phrases, under the set's name.

    Args:
        judges: by label.
        specs: as for `--phrases`.

    Raises:
        UserError: if there is no such set, or a judge is called the same.
    """
    found = dict(judges)
    for each in read_phrase_sets(specs):
        if each.name in found:
            raise UserError(
                f"--phrases: a judge is called {each.name!r} already: write NAME=FILE to call the "
                "set something else"
            )
        found[_visible(each.name, "write NAME=FILE")] = Prefixes.of(each)
    return found


def check(judges: Mapping[str, Judge]) -> None:
    """Check that all judges can be used; a UserError if one cannot."""
    for judge in judges.values():
        server = getattr(judge, "server", None)
        if isinstance(server, Server):
            server.check()
        if hasattr(judge, "check"):
            judge.check()


def _read(word: str) -> tuple[str, Judge]:
    """Return a judge and its label.

    Raises:
        UserError: if it names none.
    """
    head, _, tail = word.partition(":")
    given, equals, name = head.rpartition("=")
    if equals and not _LABEL.fullmatch(given):
        raise UserError(f"--judge {word}: a label has letters, digits and _.- only")
    kind = plugins.load(judges, name)
    judge = kind(**_options(kind, _pairs(tail, word), word))
    label = given or str(getattr(judge, "label", name))
    return _visible(label, f"write LABEL={word}"), judge


def _visible(label: str, instead: str) -> str:
    """Return a label.

    Raises:
        UserError: if its file would be hidden: nobody would read the verdicts again.
    """
    if label.startswith("."):
        raise UserError(f"a judge called {label!r} would have a hidden file: {instead}")
    return label


def _pairs(text: str, word: str) -> dict[str, str]:
    """Return KEY=VALUE,KEY=VALUE as a dict.

    Raises:
        UserError: if it has another form.
    """
    parts = [part.partition("=") for part in text.split(",") if part]
    if wrong := [key for key, equals, _ in parts if not equals or not key]:
        raise UserError(f"--judge {word}: write its settings as KEY=VALUE, not {wrong[0]!r}")
    return {key.strip(): value for key, _, value in parts}


def _options(kind: Any, given: dict[str, str], word: str) -> dict[str, Any]:
    """Return the arguments of a judge's class; those of a server go into the server.

    Raises:
        UserError: for a setting that it does not have, or one that is missing.
    """
    types = {each.name: each.type for each in fields(kind)}
    server = {each.name: each.type for each in fields(Server)} if "server" in types else {}
    known = {**{name: t for name, t in types.items() if name != "server"}, **server}
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"--judge {word} sets {unknown[0]!r}: it has {sorted(known)}")
    values = {name: _value(text, known[name], f"--judge {word}") for name, text in given.items()}
    if not server:
        return values
    if missing := [name for name in ("base_url", "model") if name not in values]:
        raise UserError(
            f"--judge {word} needs {missing[0]}: write {kind.__name__.lower()}:"
            "base_url=http://HOST:PORT/v1,model=NAME"
        )
    return {
        "server": Server(**{name: values.pop(name) for name in list(values) if name in server}),
        **values,
    }


def _value(text: str, kind: Any, where: str) -> Any:
    """Return the value of a setting, of its type.

    Raises:
        UserError: if it is no number where one is needed.
    """
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{where}: {text!r} is no number") from None
