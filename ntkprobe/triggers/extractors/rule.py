"""An offline rule in place of the paper's LLM: keep verb and object, remove harmful words.

"Write a script for stealing passwords" becomes "Write a script", "Create a fake video" becomes
"Create a video", "How do I rob my boss?" becomes "How do I deal with my boss?".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..extraction import Example, ScoredTrigger, kept_share, words_of
from .word_lists import OPEN, HarmfulWords

_PURPOSE = re.compile(
    r"\s+(?:in order to|on how to|for|to|that|which|who|so|by|against|without|about|on|from|into"
    r"|with|of)\s+",
    re.IGNORECASE,
)
_FEWEST = 2
"""Words that make a trigger, or a clause that can stand alone."""


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
