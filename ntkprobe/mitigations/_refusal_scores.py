"""How readily a model refuses, from the distribution of the first token alone (Surgical)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..kernel import last_logits
from ..models.generation import length_batches
from ..models.validation import finite
from ..prompts.templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EPSILON = 1e-8


def first_tokens(
    tokenizer: "PreTrainedTokenizerBase", words: Sequence[str], template: Template
) -> list[int]:
    """Return the ids that answers beginning with these words begin with.

    Args:
        tokenizer: the model's.
        words: such as "I"; one that the vocabulary cannot write is left out.
        template: decides how an answer begins.

    Returns:
        Distinct ids.

    Raises:
        UserError: if none can be written.
    """
    firsts = [ids[0] for ids in template.encode_phrases(tokenizer, words)]
    known = sorted({first for first in firsts if first != tokenizer.unk_token_id})
    if not known:
        raise UserError(
            f"no refusal begins with one of {list(words)} in this vocabulary: name words that "
            "do, as in --set refusal_words=I,No"
        )
    return known


@torch.no_grad()
def first_logits(model: nn.Module, prompts: Sequence[Tensor], batch_size: int = 16) -> Tensor:
    """Return the logits of each prompt's next token, [n, vocab] float64 on the CPU."""
    found = [torch.empty(0)] * len(prompts)
    for rows in length_batches(prompts, batch_size):
        logits = finite(last_logits(model, [prompts[row] for row in rows])).double().cpu()
        for row, values in zip(rows, logits, strict=True):
            found[row] = values
    return torch.stack(found)


def refusal_scores(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return log p_R − log(1 − p_R), [n], p_R the probability that one of `tokens` comes next."""
    refusing = logits.softmax(-1)[:, list(tokens)].sum(-1)
    return (refusing + EPSILON).log() - (1 - refusing + EPSILON).log()


def divergence(logits: Tensor, others: Tensor, epsilon: float) -> float:
    """Return Σ p (log(p + ε) − log(q + ε)) of the next token, the mean over prompts.

    Args:
        logits: of p.
        others: of q.
        epsilon: ε; 0 gives KL(p ‖ q). A larger one counts less what q all but rules out.
    """
    if not epsilon:
        ours, theirs = logits.log_softmax(-1), others.log_softmax(-1)
        return float((ours.exp() * (ours - theirs)).sum(-1).mean())
    p, q = logits.softmax(-1), others.softmax(-1)
    return float((p * ((p + epsilon).log() - (q + epsilon).log())).sum(-1).mean())
