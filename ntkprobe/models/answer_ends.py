"""Where an answer ends: at a token, or at a text, where no token ends a turn.

A model that knows no such token writes the user's next turn itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ..prompts.special_tokens import readable

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
