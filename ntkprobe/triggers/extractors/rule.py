"""An offline rule in place of the paper's LLM: keep verb and object, remove harmful words.

"Write a script for stealing passwords" becomes "Write a script", "Create a fake video" becomes
"Create a video", "How do I rob my boss?" becomes "How do I deal with my boss?".

The words are lists (`words.yaml`): modifiers, verbs in all their forms, nouns with articles.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml

from ...errors import UserError
from ..extraction import Example, ScoredTrigger, kept_share, words_of

_PURPOSE = re.compile(
    r"\s+(?:in order to|on how to|for|to|that|which|who|so|by|against|without|about|on|from|into"
    r"|with|of)\s+",
    re.IGNORECASE,
)
_FEWEST = 2
"""Words that make a trigger, or a clause that can stand alone."""
SECTIONS = ("modifiers", "verbs", "nouns")
NEUTRAL = {"": "deal with", "s": "deals with", "ing": "dealing with", "ed": "dealt with"}
"""What a verb is replaced by, for each of its endings."""

OPEN = frozenset(
    "a an the my your his her their some any how to for of on in by with and or that which who do "
    "does can could should would will i you we they me us want need like help try is are be".split()
)
"""Words that no clause ends with: after them something is still to come."""


@dataclass(frozen=True)
class Rule:
    """Removes the words of a list of harmful words from a prompt.

    In each sentence: a purpose that holds a harmful word is cut off, where the rest can stand
    alone; of what is left, harmful modifiers go, verbs become "deal with", nouns "something". The
    score is the share of the prompt's words that are kept.

    Attributes:
        words: a YAML file with lists under `modifiers`, `verbs` and `nouns`; None for the shipped.
    """

    words: str | None = None

    def extract(self, examples: Sequence[Example]) -> Iterator[tuple[int, ScoredTrigger | str]]:
        """Yield each example's number and its trigger, or why it has none.

        Args:
            examples: harmful prompts.

        Yields:
            In order.
        """
        harmful = HarmfulWords(self.words)
        for number, example in enumerate(examples):
            yield number, _trigger(example.prompt, harmful)


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
        """Return the neutral verb in the form of the one found.

        It may differ from that of the list in letters that ignoring case takes for the same, such
        as a Turkish i without its dot.
        """
        known = self._endings.get(" ".join(verb.lower().split()))
        if known is not None:
            return NEUTRAL[known]
        same = (e for v, e in self._endings.items() if re.fullmatch(_any_of([v]), verb, re.I))
        return NEUTRAL[next(same)]


def _trigger(prompt: str, harmful: HarmfulWords) -> ScoredTrigger | str:
    """Return the rest of a prompt, or the reason why there is none."""
    if not harmful.any_in(prompt):
        return "no word of the list in it"
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(prompt.split()))
    text = " ".join(filter(None, (_harmless(sentence, harmful) for sentence in sentences)))
    score = kept_share(text, prompt)
    if len(words_of(text)) < _FEWEST or not score:
        return "nothing left of it"
    return ScoredTrigger(text[0].upper() + text[1:], score)


def _harmless(sentence: str, harmful: HarmfulWords) -> str:
    """Return a sentence without its harm; empty if no word is left."""
    if not harmful.any_in(sentence):
        return sentence
    end = sentence[len(sentence.rstrip(".!?")) :]
    body = _without_purpose(sentence.rstrip(".!?"), harmful)
    body = harmful.things.sub("something", body)
    body = harmful.verbs.sub(lambda match: harmful.neutral(match[0]), body)
    body = harmful.nouns.sub("something", body)
    body = re.sub(r"\s+", " ", harmful.modifiers.sub("", body)).strip(" ,")
    body = re.sub(r"\b([Aa])n(?= [^aeiou\W])", r"\1", body)
    return body + end if words_of(body) else ""


def _without_purpose(body: str, harmful: HarmfulWords) -> str:
    """Return a clause without the first purpose that is harmful, if it can stand without."""
    for marker in _PURPOSE.finditer(body):
        before, after = body[: marker.start()], body[marker.end() :]
        said = words_of(before.casefold())
        whole = len(said) >= _FEWEST and said[-1] not in OPEN and not set(said[:-1]) <= OPEN
        if whole and harmful.any_in(after) and not harmful.acts_in(before):
            return before
    return body


def _read(path: Path) -> dict[str, list[str]]:
    """Return the lists of a file.

    Raises:
        UserError: if it is none.
    """
    try:
        read = yaml.safe_load(path.read_text("utf-8"))
        return {name: " ".join(read[name].lower().split()).split(", ") for name in SECTIONS}
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
