"""Answers: greedy ones from prompts whose keys and values are kept, and where any answer ends.

It ends at a token, or at a text where no token ends a turn: a model that knows no such token writes
the user's next turn itself. An answer that ended is run no more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ..prompts.special_tokens import readable
from .cached import CachedPrompts
from .validation import require_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPARE = 4  # tokens: a text may begin and end within one


@dataclass(frozen=True)
class Answer:
    """What a model answered to one prompt.

    Attributes:
        text: without special tokens, but with the marks of reasoning in it (`reasoning`).
        n_tokens: its length, the token that ended it not counted.
        ended: whether the model ended it, and not `max_new_tokens`.
    """

    text: str
    n_tokens: int
    ended: bool


def answer_of(
    tokenizer: "PreTrainedTokenizerBase",
    ids: list[int],
    stops: Sequence[int],
    texts: Sequence[str] = (),
) -> Answer:
    """Return the answer that tokens are, up to the first stop.

    Args:
        tokenizer: decodes.
        ids: what the model wrote.
        stops: tokens that end an answer.
        texts: texts that end it and are no part of it.
    """
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    length = len(ids) if end is None else end
    if (cut := _before(tokenizer, ids[:length], texts)) is not None:
        text, length = cut
        return Answer(text, length, True)
    return Answer(readable(tokenizer, ids[:end]), length, end is not None)


def written(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]
) -> Callable[[list[int]], bool]:
    """Return what tells of an answer's tokens whether their end has one of the texts in it.

    Args:
        tokenizer: decodes.
        texts: such as `template.stop_texts(tokenizer)`.
    """
    window = max((len(text.encode()) for text in texts), default=0) + SPARE

    def over(ids: list[int]) -> bool:
        end = readable(tokenizer, ids[-window:])
        return any(text in end for text in texts)

    return over


def _before(
    tokenizer: "PreTrainedTokenizerBase", ids: list[int], texts: Sequence[str]
) -> tuple[str, int] | None:
    """Return an answer up to the first of some texts.

    Args:
        tokenizer: decodes.
        ids: the answer's tokens.
        texts: that end it.

    Returns:
        The text before it, and how many tokens lie wholly in that; None if none of them occurs.
    """
    if not texts:
        return None
    whole = readable(tokenizer, ids)
    places = [place for text in texts if (place := whole.find(text)) >= 0]
    if not places:
        return None
    kept = whole[: min(places)]
    count = sum(len(readable(tokenizer, ids[: n + 1])) <= len(kept) for n in range(len(ids)))
    return kept.rstrip(), count


def stopping_criteria(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], prompt: int
) -> StoppingCriteriaList:
    """Return what ends transformers' own `generate` at some texts; nothing without any.

    Args:
        tokenizer: decodes.
        texts: that end an answer.
        prompt: length of the padded prompts, in tokens.
    """
    return StoppingCriteriaList([_AtText(tokenizer, texts, prompt)] if texts else [])


class _AtText(StoppingCriteria):
    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], prompt: int
    ) -> None:
        self.over, self.prompt = written(tokenizer, texts), prompt

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        ended = [self.over(row) for row in input_ids[:, self.prompt :].tolist()]
        return torch.tensor(ended, device=input_ids.device)


@torch.no_grad()
def greedy_tokens(
    kept: CachedPrompts,
    stops: Sequence[int],
    max_new_tokens: int,
    rows: Sequence[int] | None = None,
    over: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Return the tokens of each prompt's greedy answer, with the one that ends it.

    Args:
        kept: the prompts; not changed.
        stops: tokens that end an answer.
        max_new_tokens: an answer's length at most; the last token is read and never run.
        rows: the prompts' numbers, for messages.
        over: tells of an answer's tokens whether it has ended, besides its last token.
    """
    numbers = list(range(len(kept.lengths)) if rows is None else rows)
    answers: list[list[int]] = [[] for _ in numbers]
    batch, going, ends = kept.fork(), list(range(len(numbers))), set(stops)
    logits = batch.logits
    while True:
        require_numbers(logits.isnan().any(-1), [numbers[row] for row in going])
        chosen = logits.float().argmax(-1)  # in float32, as transformers' generate() does
        tokens = chosen.tolist()
        for row, token in zip(going, tokens, strict=True):
            answers[row].append(token)
        left = [
            place
            for place, token in enumerate(tokens)
            if token not in ends and not (over is not None and over(answers[going[place]]))
        ]
        if not left or len(answers[going[0]]) == max_new_tokens:
            return answers
        if len(left) < len(going):
            batch.select(left)
            going = [going[place] for place in left]
        logits = batch.append(chosen[left])
