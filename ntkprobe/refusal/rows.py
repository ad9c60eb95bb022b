"""The oracle: each phrase after each prompt, teacher-forced, a row of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ..models.batching import LengthRule, forgetting_lengths, padding_known
from ..models.generation import Ids, input_device, require_numbers


@torch.no_grad()
def score_by_rows(
    model: Any,
    input_ids: Sequence[Ids],
    phrase_ids: Sequence[Sequence[int]],
    rows: Sequence[int] | None = None,
) -> Float64[Tensor, "prompts phrases"]:
    """Return what `row_scores` does, as numbers alone."""
    return row_scores(model, input_ids, phrase_ids, rows)


def row_scores(
    model: Any,
    input_ids: Sequence[Ids],
    phrase_ids: Sequence[Sequence[int]],
    rows: Sequence[int] | None = None,
) -> Float64[Tensor, "prompts phrases"]:
    """Return log P(phrase | prompt), differentiably, with the prompt run again for each phrase.

    Rows are padded on the right, where a causal model cannot look: no mask and no position ids are
    needed, so that this holds for every architecture. Where padding changes a model all the same,
    phrases are run alone; and each token is read off a pass over no more text than goes before it
    or is computed alike (`batching`).

    Args:
        model: a causal language model in evaluation mode.
        input_ids: encoded prompts.
        phrase_ids: the phrases' ids, none of them empty.
        rows: the prompts' numbers, for messages.

    Returns:
        Natural logarithms, float64.
    """
    numbers = range(len(input_ids)) if rows is None else rows
    spans = LengthRule.of(model).spans
    groups = [[row] for row in range(len(phrase_ids))]
    if padding_known(model, "right") is not False:
        groups = [[row for each in groups for row in each]]
    scores = []
    for number, prompt in zip(numbers, input_ids, strict=True):
        own: dict[int, Tensor] = {}
        for group in groups:
            phrases = [phrase_ids[row] for row in group]
            longest = max(map(len, phrases)) - 1  # the last token is read and never run
            parts = [
                _read(model, prompt, phrases, span, number) for span in spans(len(prompt), longest)
            ]
            own |= dict(zip(group, torch.stack(parts).sum(0), strict=True))
        scores.append(torch.stack([own[row] for row in range(len(phrase_ids))]))
    return torch.stack(scores).cpu()


def _read(
    model: Any,
    prompt: Ids,
    phrases: Sequence[Sequence[int]],
    span: tuple[int, int],
    number: int,
) -> Float64[Tensor, " phrases"]:
    """Return Σ log p(y_t | x, y_<t) over the phrases' tokens from `span[0]` to `span[1]`."""
    first, last = span
    batch = [[*map(int, prompt), *ids[:last], *[0] * (last - len(ids))] for ids in phrases]
    with forgetting_lengths(model):
        logits = model(torch.tensor(batch, device=input_device(model)), use_cache=False).logits
    answers = logits[:, len(prompt) - 1 + first :].double().log_softmax(-1)
    require_numbers(answers.isnan().flatten()[None].any(-1), [number])
    tokens = [torch.tensor(list(ids[first : last + 1]), dtype=torch.long) for ids in phrases]
    pairs = zip(answers, tokens, strict=True)
    return torch.stack([row[torch.arange(len(ids)), ids].sum() for row, ids in pairs])
