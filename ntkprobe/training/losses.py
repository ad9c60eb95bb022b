"""Circle loss on features of two groups of prompts (paper Eq. 5; Sun et al. 2020), and its floor.

    L = (1/B) sum_i log(1 + sum_p exp(-g a_p (s_ip - D_p)) * sum_n exp(g a_n (s_in - D_n)))

with s the cosine similarity, D_p = 1 - m, D_n = m. The weights a are what the two texts differ in:
the paper's are [D_p - s]+ and [s - D_n]+, a squared hinge whose satisfied pairs have no gradient;
Sun et al. have [1 + m - s]+ and [s + m]+.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError


def circle_loss(
    features: Float[Tensor, "batch width"],
    labels: Int[Tensor, " batch"],
    *,
    margin: float = 0.25,
    scale: float = 16.0,
    weights: str = "paper",
    detach: bool = False,
) -> Float[Tensor, ""]:
    """Return Eq. 5: the mean over all anchors, of which one without a positive or negative adds 0.

    Args:
        features: one vector per prompt; only directions count.
        labels: which group each prompt is of.
        margin: m.
        scale: g, the paper's gamma.
        weights: `paper` (Eq. 5 to the letter) or `sun2020` (the cited loss).
        detach: treat the weights as constants, as Sun et al. do; the paper does not say. With
            the paper's weights this halves the gradient and changes nothing else.

    Returns:
        A scalar of the features' type, float32 at least.
    """
    similarities = cosine_similarities(features)
    positive, negative = pairs(labels)
    pull, push = _weights(similarities.detach() if detach else similarities, margin, weights)
    pulls = -scale * pull * (similarities - (1 - margin))
    pushes = scale * push * (similarities - margin)
    complete = positive.any(1) & negative.any(1)
    # logsumexp over nothing has no gradient: an incomplete anchor sums over all, then is dropped.
    spare = ~complete[:, None]
    terms = _logsumexp(pulls, positive | spare) + _logsumexp(pushes, negative | spare)
    return torch.where(complete, _log1pexp(terms), 0.0).mean()


def circle_loss_floor(
    labels: Int[Tensor, " batch"],
    *,
    margin: float = 0.25,
    scale: float = 16.0,
    weights: str = "paper",
) -> Float[Tensor, ""]:
    """Return the least value of `circle_loss` for these labels: no pair violates its target.

    Per anchor: log(1 + |P||N|) with the paper's weights, log(1 + |P||N| exp(-2 g m^2)) with Sun's.
    """
    positive, negative = pairs(labels)
    number = (positive.sum(1) * negative.sum(1)).double()
    exponent = 0.0 if _known(weights) == "paper" else -2 * scale * margin**2
    return torch.where(number > 0, _log1pexp(number.log() + exponent), 0.0).mean()


def cosine_similarities(
    features: Float[Tensor, "batch width"],
) -> Float[Tensor, "batch batch"]:
    """Return the cosine of every pair of rows, in float32 at least, under autocast too."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    with torch.autocast(features.device.type, enabled=False):
        directions = F.normalize(wide, dim=-1)
        return directions @ directions.T


def pairs(
    labels: Int[Tensor, " batch"],
) -> tuple[Bool[Tensor, "batch batch"], Bool[Tensor, "batch batch"]]:
    """Return which pairs are positive (two prompts of one group) and which negative."""
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def _weights(
    similarities: Float[Tensor, "batch batch"], margin: float, weights: str
) -> tuple[Float[Tensor, "batch batch"], Float[Tensor, "batch batch"]]:
    """Return the weights of the pairs as positives and as negatives, all >= 0."""
    if _known(weights) == "paper":
        return F.relu(1 - margin - similarities), F.relu(similarities - margin)
    return F.relu(1 + margin - similarities), F.relu(similarities + margin)


def _known(weights: str) -> str:
    """Return `weights`.

    Raises:
        UserError: if that is not the name of a weighting.
    """
    if weights not in ("paper", "sun2020"):
        raise UserError(f"circle-loss weights {weights!r}: choose 'paper' or 'sun2020'")
    return weights


def _logsumexp(
    exponents: Float[Tensor, "batch batch"], mask: Bool[Tensor, "batch batch"]
) -> Float[Tensor, " batch"]:
    """Return log of the sum of exp over the pairs in `mask`, row by row."""
    return exponents.masked_fill(~mask, -torch.inf).logsumexp(1)


def _log1pexp(x: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return log(1 + exp(x)); torch's softplus rounds to x above 20."""
    return torch.logaddexp(x, torch.zeros_like(x))
