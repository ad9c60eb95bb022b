"""Greedy answers to prompts whose keys and values are kept; an answer that ended is run no more."""

from collections.abc import Callable, Sequence

import torch

from .cached import CachedPrompts
from .validation import require_numbers


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
