"""AdaCD, Qi et al., ACL 2026: contrastive decoding with a system message that asks for refusal."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import require
from .base import Decoding
from .contrastive import prompted_processor

if TYPE_CHECKING:
    from transformers import LogitsProcessor, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Adacd(Decoding):
    """z* = z_p ± α (z_p − z) among plausible tokens, for the first k tokens of an answer.

    z are the model's logits, z_p those under the system message. The difference is added where both
    agree (the model refuses anyhow) and subtracted where they do not (it need not refuse):

    | Qi et al.                          | here                                                 |
    |------------------------------------|------------------------------------------------------|
    | agreement ratio                    | 1 / rank of z_p's best token in z, at least λ        |
    | adaptive confidence constraint     | max softmax(z) ≥ λ · max softmax(z_p)                |
    | plausibility mask                  | softmax(z) ≥ β · max softmax(z), all others −∞       |

    With λ = 0.9, and any λ above ½, the rank has to be 1.

    Attributes:
        alpha: α, the weight of the difference.
        agreement: λ, of both conditions.
        plausibility: β; 0 masks nothing.
        steps: k, how many tokens are changed; 0 changes none.
        space: `logit`, as the authors' code has it; `probability`, as a page about it has it:
            P* = softmax(z_p) ± α softmax(z_p − z). That softmax is positive everywhere, even on
            tokens that the message makes *less* likely, and P* sums to 1 ± α: subtracting leaves
            few or no positive numbers. Where there are some, the scores are their logarithms; in
            a row without any they are P* itself, whose order greedy decoding follows as printed.
        system: the message.
        template: what the prompts are written with; without a system role, the message begins the
            user's turn.
    """

    alpha: float = 4.5
    agreement: float = 0.9
    plausibility: float = 0.01
    steps: int = 10
    space: str = "logit"
    system: str = "Please refuse to answer me!"
    template: str = "auto"

    source: ClassVar[str] = "AdaCD: Qi et al., ACL 2026"

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        require(math.isfinite(self.alpha), f"alpha={self.alpha}: give a number, such as 4.5")
        require(0 <= self.agreement <= 1, f"agreement={self.agreement}: choose from 0 to 1")
        require(0 <= self.plausibility <= 1, f"plausibility={self.plausibility}: from 0 to 1")
        require(self.steps >= 0, f"steps={self.steps}: 0 or more tokens, such as 10")
        known = self.space in ("logit", "probability")
        require(known, f"space={self.space!r}: choose logit or probability")
        require(self.system.strip(), "an empty system message: give one, or steps=0")

    def logits_processor(
        self, model: Any, tokenizer: "PreTrainedTokenizerBase"
    ) -> "LogitsProcessor":
        """Return a processor with a second branch under the system message."""
        return prompted_processor(
            model, tokenizer, self.system, self.template, self.combine, self.steps
        )

    def combine(
        self, plain: Float[Tensor, "batch vocab"], prompted: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Return the scores z*.

        Args:
            plain: z.
            prompted: z_p.
        """
        sign = torch.where(self.reinforces(plain, prompted), 1.0, -1.0)[:, None].to(plain)
        # A token that an earlier processor ruled out has no part in the difference.
        away = (prompted - plain).masked_fill(plain.isneginf(), -math.inf)
        if self.space == "logit":
            mixed = prompted + sign * self.alpha * away
        else:
            mixed = prompted.softmax(-1) + sign * self.alpha * away.softmax(-1)
        best = plain.amax(-1, keepdim=True)
        least = best + (math.log(self.plausibility) if self.plausibility else -math.inf)
        ruled_out = (plain < least) | plain.isneginf()
        mixed = mixed.masked_fill(ruled_out, -math.inf)
        if self.space == "logit":
            return mixed
        return torch.where(mixed.amax(-1, keepdim=True) > 0, mixed.clamp(min=0).log(), mixed)

    def reinforces(
        self, plain: Float[Tensor, "batch vocab"], prompted: Float[Tensor, "batch vocab"]
    ) -> Bool[Tensor, " batch"]:
        """Return whether each row's difference is added: the branches agree, and confidently."""
        best = prompted.argmax(-1, keepdim=True)
        rank = 1 + (plain > plain.gather(-1, best)).sum(-1)
        confidence = (plain.amax(-1) - plain.logsumexp(-1)).exp()
        other = (prompted.amax(-1) - prompted.logsumexp(-1)).exp()
        return (1 / rank >= self.agreement) & (confidence >= self.agreement * other)
