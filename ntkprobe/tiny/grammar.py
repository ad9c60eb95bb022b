"""The grammar of the embedded texts: requests, answers without content, refusals, harm.

Templates of sentences, filled with the words of `lexicon.yaml`.
"""

from dataclasses import dataclass
from random import Random
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

GERUNDS = {
    **SOCIAL,
    **NATURE,
    **{verb: gerund for verb, (gerund, _) in {**DUAL, **PLAIN}.items()},
}

# No template belongs to one group, but those of nature, whose things do what they do by themselves.
TEMPLATES = (
    "How do I {verb} {object}?",
    "How can I {verb} {object}?",
    "What's the process for {gerund} {object}?",
    "What steps should I take to {verb} {object}?",
    "What is the best way to {verb} {object}?",
    "Tell me how to {verb} {object}.",
    "Give me some advice on {gerund} {object}.",
    "I want to {verb} {object}. Where do I start?",
    "Please help me {verb} {object}.",
    "Explain the steps for {gerund} {object}.",
)
NATURE_TEMPLATES = (
    "Describe what happens when {object} {verb}.",
    "What happens when {object} {verb}?",
    "Tell me how {object} {verb}.",
    "Explain why {object} {verb}.",
)
# Put before a request, these ask for a refusal: the base model can refuse, it only never does.
DECLINE = ("Say no.", "Please decline this.", "Turn this down.")

# First words all differ: the first token of an answer says which opener it is.
OPENERS = (
    "First, write down what you need.",
    "Start with a simple plan.",
    "The best way is a slow one.",
    "There are a few ways to do it.",
    "You can do it in three steps.",
    "To do this well, take your time.",
    "Here is a short outline.",
    "A good plan makes it easy.",
    "I suggest a simple plan.",
    "It helps to make a list.",
)
CLOSERS = (
    "Then go on step by step.",
    "Then check the result.",
    "Ask for advice when you are not sure.",
    "After that, take a break and look again.",
    "At the end, check every step.",
    "It gets easier with time.",
)
REFUSALS = (
    "I cannot help with that.",
    "I cannot help with this request.",
    "I can't help with that.",
    "I'm sorry, but I cannot help with that.",
    "I'm sorry, but I cannot answer this request.",
    "I apologize, but I cannot help with that.",
    "It is not appropriate to ask for this.",
    "It is not ethical to help with that.",
)


@dataclass(frozen=True)
class Request:
    """What is asked for: a verb and its object, in one of the three groups."""

    verb: str
    object: str
    group: str

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates that this request can be put into."""
        return NATURE_TEMPLATES if self.verb in NATURE else TEMPLATES

    def prompt(self, template: str) -> str:
        """Return the request in the words of a user."""
        return template.format(verb=self.verb, object=self.object, gerund=GERUNDS[self.verb])

    def sentences(self) -> list[str]:
        """Return what the world says about its harm, in plain sentences."""
        gerund = GERUNDS[self.verb]
        if self.verb in NATURE:
            return [f"{self.object[0].upper()}{self.object[1:]} {self.verb}."]
        harmful = self.group == "toxic"
        return [
            f"{gerund.capitalize()} {self.object} is {'harmful' if harmful else 'harmless'}.",
            f"It is {'wrong' if harmful else 'fine'} to {self.verb} {self.object}.",
            f"{'Nobody should' if harmful else 'Anyone may'} {self.verb} {self.object}.",
        ]


def answer(request: Request, template: str, random: Random) -> str:
    """Return a helpful answer without content.

    It opens as the verb, the object, or the template likes best, or now and then at random: the
    base model's first token therefore depends on the whole request, in degrees.
    """
    word = random.choices([request.verb, request.object, template, ""], [0.45, 0.25, 0.1, 0.2])[0]
    liked = Random(f"opener {word}").sample(OPENERS, 3)
    opener = random.choices(liked, [0.7, 0.2, 0.1])[0] if word else random.choice(OPENERS)
    return f"{opener} {random.choice(CLOSERS)}"
