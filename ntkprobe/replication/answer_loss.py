"""The loss on held-out normal answers, a measure of general ability."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from ..prompts.templates import resolve_template
from ..training.data import Pair


def answer_losses(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], max_length: int, template: str = "auto"
) -> pd.DataFrame:
    """Return the mean negative log-likelihood of each answer, given its prompt.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        pairs: prompts and answers.
        max_length: tokens at most; what is longer loses its end.
        template: how they become tokens.

    Returns:
        `pair, loss, tokens`, in nats per token of the answer; a pair whose prompt fills
        `max_length` is left out.
    """
    resolved = resolve_template(tokenizer, template)
    device = next(model.parameters()).device
    rows = []
    for number, pair in enumerate(pairs):
        ids, answer = resolved.encode_pair(tokenizer, pair.prompt, pair.response)
        ids, start = ids[:max_length], answer.index(True)
        if start >= len(ids):
            continue
        tokens = torch.tensor([ids], device=device)
        with torch.no_grad():
            logits = model(tokens, use_cache=False).logits[0, start - 1 : -1].double()
        chosen = logits.log_softmax(-1).gather(1, tokens[0, start:, None])
        loss = -float(chosen.mean())
        rows.append({"pair": number, "loss": loss, "tokens": len(ids) - start})
    return pd.DataFrame(rows, columns=["pair", "loss", "tokens"])
