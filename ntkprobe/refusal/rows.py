"""The oracle: each phrase after each prompt, teacher-forced, a row of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ..generation import Ids, input_device, require_numbers


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
    needed, so that this holds for every architecture.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: encoded prompts.
        phrase_ids: the phrases' ids, none of them empty.
        rows: the prompts' numbers, for messages.

    Returns:
        Natural logarithms, float64.
    """
    numbers = range(len(input_ids)) if rows is None else rows
    longest = max(map(len, phrase_ids))
    scores = []
    for number, prompt in zip(numbers, input_ids, strict=True):
        batch = [[*map(int, prompt), *ids[:-1], *[0] * (longest - len(ids))] for ids in phrase_ids]
        logits = model(torch.tensor(batch, device=input_device(model)), use_cache=False).logits
        answers = logits[:, len(prompt) - 1 :].double().log_softmax(-1)
        require_numbers(answers.isnan().flatten()[None].any(-1), [number])
        pairs = zip(answers, phrase_ids, strict=True)
        own = [row[torch.arange(len(ids)), list(ids)].sum() for row, ids in pairs]
        scores.append(torch.stack(own))
    return torch.stack(scores).cpu()
