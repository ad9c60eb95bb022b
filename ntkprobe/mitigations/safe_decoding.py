"""SafeDecoding, Xu et al., ACL 2024: mix in a refusing expert in the first tokens."""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor, nn

from ..errors import require
from ..prompts.prompt_set import PromptSet
from .base import Decoding
from .branches import Branch
from .contrastive import ContrastiveProcessor, stateless
from .lora_expert import Expert
from .token_candidates import mixed_scores, shared_candidates

if TYPE_CHECKING:
    from transformers import LogitsProcessor, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class SafeDecoding(Decoding):
    """P = p + α (p_e − p) on the tokens that both rank high, for the first m tokens of an answer.

    The tokens are top-k(p) ∩ top-k(p_e) of the smallest k that gives c of them; P is floored at
    1e-8 and renormalised. The expert is the base model with a LoRA adapter trained on refusals, by
    the authors on the model's own refusals of 36 harmful prompts: `ntkprobe train sft` makes one.

    Attributes:
        expert: the adapter's folder; it replaces the model's own adapter, if it has one that is
            not merged into its weights.
        alpha: α. The authors run 3; their class defaults to 1.
        steps: m, how many tokens are changed; 0 changes none. The authors run 2.
        common: c. The authors run 5.
    """

    expert: str = ""
    alpha: float = 3.0
    steps: int = 2
    common: int = 5

    source: ClassVar[str] = "SafeDecoding: Xu et al., ACL 2024, section 4, arXiv 2402.08983"
    adapter_apart: ClassVar[bool] = True
    models: ClassVar[tuple[str, ...]] = ("expert",)

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        require(math.isfinite(self.alpha), f"alpha={self.alpha}: give a number, such as 3")
        require(self.steps >= 0, f"steps={self.steps}: 0 or more tokens, such as 2")
        require(self.common >= 1, f"common={self.common}: 1 or more tokens, such as 5")

    def fit(
        self, model: nn.Module, tokenizer: "PreTrainedTokenizerBase", prompts: PromptSet
    ) -> Self:
        """Return the same with the expert's absolute path, after checking that it fits."""
        Expert.of(model, self.expert)
        return replace(self, expert=str(Path(self.expert).absolute()))

    def logits_processor(
        self, model: Any, tokenizer: "PreTrainedTokenizerBase"
    ) -> "LogitsProcessor":
        """Return a processor whose second branch is the expert."""
        if not self.steps:
            return ContrastiveProcessor(
                tokenizer, partial(Branch, model), stateless(self.combine), 0
            )
        expert = Expert.of(model, self.expert)
        branch = partial(Branch, model, around=partial(expert.active, model))
        return ContrastiveProcessor(tokenizer, branch, stateless(self.combine), self.steps)

    def combine(
        self, plain: Float[Tensor, "batch vocab"], expert: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Return log P, −∞ outside of the tokens that both rank high.

        Args:
            plain: logits, whose softmax is p.
            expert: the expert's logits.
        """
        return mixed_scores(
            plain, expert, self.alpha, shared_candidates(plain, expert, self.common)
        )
