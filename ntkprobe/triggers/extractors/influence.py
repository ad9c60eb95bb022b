"""Triggers by measured influence: the words of a prompt that spread refusal to benign prompts.

A step of training on a harmful prompt and its refusal raises log P(refuse) of benign prompts by the
signed influence of the pair on them (Eq. 2, `ntkprobe.measurement.influence`). Without one of the
prompt's words it is raised by less or by more. The words without which it is raised least are what
the harmful prompt shares with the benign ones: the trigger.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...measurement.influence import influence
from ...progress import progress as long_stage
from ..extraction import WORD, Example, ScoredTrigger, words_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

VARIANTS_PER_CALL = 256
"""Variants of prompts whose influence is computed in one call."""


@dataclass(frozen=True, eq=False)
class Influence:
    """Leaves out one word at a time; W + 1 backward passes for a prompt of W words.

    The score is the part of the influence that goes with the trigger's words, each left out alone.

    Attributes:
        model: that is to be trained, in evaluation mode.
        tokenizer: its tokenizer.
        benign: prompts that should not be refused; the influence is the mean over them.
        share: of the prompt's words that a trigger keeps at most.
        parameters: that the step moves: a selection, or `auto`.
        template: how prompts become tokens.
        progress: show a bar on stderr.
    """

    model: "nn.Module | None" = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    benign: Sequence[str] = ()
    share: float = 0.5
    parameters: str = "auto"
    template: str = "auto"
    progress: bool = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            UserError: without a model or benign prompts, or for a share out of range.
        """
        if self.model is None or not self.benign:
            raise UserError("the extractor influence needs a model and benign prompts: give both")
        if not 0 < self.share <= 1:
            raise UserError(f"share is {self.share}: give more than 0, and 1 at most")

    def extract(self, examples: Sequence[Example]) -> Iterator[tuple[int, ScoredTrigger | str]]:
        """Yield each example's number and its trigger, or why it has none.

        Args:
            examples: harmful prompts with refusals.

        Yields:
            In order.

        Raises:
            UserError: if an example has no refusal, which is what is learnt.
        """
        for number, example in enumerate(examples):
            if not example.refusal.strip():
                raise UserError(
                    f"harmful prompt {number + 1} has no refusal, and the influence is that of "
                    "learning it: give a file with the column response"
                )
        for some in long_stage(
            _batches(examples), desc="triggers", unit="batch", disable=not self.progress
        ):
            for (number, example), drops in zip(
                some, self.drops([e for _, e in some]), strict=True
            ):
                yield number, self._trigger(example.prompt, *drops)

    def drops(self, examples: Sequence[Example]) -> list[tuple[float, list[float]]]:
        """Return the influence of each example, and its decrease without each of its words.

        Args:
            examples: harmful prompts with refusals.

        Returns:
            For each the mean change of log P(refuse) of the benign prompts per unit step, and for
            every word that change less the change without the word.
        """
        variants = [(number, text) for number, e in enumerate(examples) for text in _variants(e)]
        found: Any = influence(
            self.model,  # type: ignore[arg-type]
            self.tokenizer,
            observed=list(self.benign),
            updated=[(text, examples[number].refusal) for number, text in variants if text],
            tokens=None,
            parameters=self.parameters,
            template=self.template,
        )
        changes = iter(found.refusal.mean(1).tolist())
        values: list[list[float]] = [[] for _ in examples]
        for number, text in variants:
            values[number].append(next(changes) if text else 0.0)
        return [(whole, [whole - each for each in without]) for whole, *without in values]

    def _trigger(self, prompt: str, whole: float, drops: list[float]) -> ScoredTrigger | str:
        """Return the words with the largest drops, in their order."""
        if whole <= 0:
            return "no influence on the benign prompts"
        number = max(1, int(self.share * len(drops)))
        kept = sorted(range(len(drops)), key=lambda i: -drops[i])[:number]
        kept = sorted(i for i in kept if drops[i] > 0)
        if not kept:
            return "no word of influence"
        words = words_of(prompt)
        text = " ".join(words[i] for i in kept)
        return ScoredTrigger(text[0].upper() + text[1:], sum(drops[i] for i in kept) / whole)


def _batches(examples: Sequence[Example]) -> list[list[tuple[int, Example]]]:
    """Return the examples with their numbers in batches of at most `VARIANTS_PER_CALL` variants.

    The gradients of the benign prompts are computed for each batch.
    """
    batches: list[list[tuple[int, Example]]] = [[]]
    held = 0
    for number, example in enumerate(examples):
        held += 1 + len(words_of(example.prompt))
        if held > VARIANTS_PER_CALL and batches[-1]:
            batches.append([])
            held = 1 + len(words_of(example.prompt))
        batches[-1].append((number, example))
    return batches


def _variants(example: Example) -> list[str]:
    """Return a prompt, then without each of its words; empty where no other is left."""
    spans = [match.span() for match in WORD.finditer(example.prompt)]
    return [example.prompt, *(_without(example.prompt, span) for span in spans)]


def _without(text: str, span: tuple[int, int]) -> str:
    """Return a text without one word; empty if it was the only one."""
    left = re.sub(r"\s+", " ", text[: span[0]] + text[span[1] :])
    left = re.sub(r" (?=[.,!?;:])", "", left).strip()
    return left if WORD.search(left) else ""
