"""Candidate tokens of two models, and the mixture of their probabilities."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FLOOR = 1e-8  # of a mixed probability, which p + α (p_e − p) may take below 0
FIRST_LOOK = 256  # ranks computed at first; 16 times more where they do not suffice


def shared_candidates(
    plain: Float[Tensor, "batch vocab"], other: Float[Tensor, "batch vocab"], count: int
) -> Bool[Tensor, "batch vocab"]:
    """Return each row's top-k(plain) ∩ top-k(other) of the smallest k that has `count` tokens.

    Args:
        plain: logits or probabilities.
        other: the other model's.
        count: tokens that both must have; the whole vocabulary at most.
    """
    words = plain.shape[-1]
    wanted, look = min(count, words), FIRST_LOOK
    while True:
        # A token is in the intersection from the k on that both rankings have reached it at.
        enters = torch.maximum(ranks(plain, look), ranks(other, look))
        last = enters.kthvalue(wanted, -1, keepdim=True).values
        if look >= words or bool((last < look).all()):
            return enters <= last
        look *= 16


def either_candidates(
    plain: Float[Tensor, "batch vocab"], other: Float[Tensor, "batch vocab"], count: int
) -> Bool[Tensor, "batch vocab"]:
    """Return each row's top-`count`(plain) ∪ top-`count`(other)."""
    return (ranks(plain, count) < count) | (ranks(other, count) < count)


def ranks(values: Float[Tensor, "batch vocab"], look: int) -> Int[Tensor, "batch vocab"]:
    """Return each token's rank, 0 the largest; the vocabulary size for all but `look` tokens."""
    words = values.shape[-1]
    top = values.topk(min(look, words), -1).indices
    places = torch.arange(top.shape[-1], device=values.device).expand_as(top)
    unranked = torch.full(values.shape, words, dtype=torch.long, device=values.device)
    return unranked.scatter(-1, top, places)


def mixed_scores(
    plain: Float[Tensor, "batch vocab"],
    other: Float[Tensor, "batch vocab"],
    weight: Float[Tensor, "batch 1"] | float,
    candidates: Bool[Tensor, "batch vocab"],
) -> Float[Tensor, "batch vocab"]:
    """Return log(p + α (p_e − p)) of the candidates, floored at 1e-8; −∞ of all other tokens.

    The softmax that reads the scores renormalises them.

    Args:
        plain: logits, whose softmax is p.
        other: the other model's, of p_e.
        weight: α.
        candidates: the tokens to choose from.
    """
    p = plain.softmax(-1)
    mixed = (p + weight * (other.softmax(-1) - p)).clamp(min=FLOOR).log()
    return mixed.masked_fill(~candidates | plain.isneginf(), -math.inf)
