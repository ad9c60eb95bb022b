"""SelfCD, Shi et al., ACL 2024: subtract the effect of a system message that stresses safety."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ..errors import require
from .base import Decoding
from .contrastive import prompted_processor
from .system_messages import PLACES

if TYPE_CHECKING:
    from transformers import LogitsProcessor, PreTrainedTokenizerBase

SAFETY = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe. Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content."
)
"""The method's own setting: the beginning of Llama 2's default system message."""


@dataclass(frozen=True, eq=False)
class SelfCd(Decoding):
    """z* = z_s − r (z_s − z) for every token, where z_s are the logits under the system message.

    Attributes:
        ratio: r; 1 gives z itself (no second branch is run), 0 gives z_s.
        system: the message; the authors' by default.
        template: what the prompts are written with; without a system role, the message begins the
            user's turn.
        place: `system`, or `user` for the beginning of the user's turn, which is where the authors'
            script has it (behind Llama 2's `[INST]`, a space before the prompt; here a blank line).
    """

    ratio: float = 2.5
    system: str = SAFETY
    template: str = "auto"
    place: str = "system"

    source: ClassVar[str] = "SelfCD: Shi et al., ACL 2024, arXiv 2401.17633"

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        require(math.isfinite(self.ratio), f"ratio={self.ratio}: give a number, such as 2.5")
        require(self.place in PLACES, f"place is {self.place!r}: choose from {list(PLACES)}")
        require(self.system.strip(), "an empty system message: give one, or ratio=1")

    def logits_processor(
        self, model: Any, tokenizer: "PreTrainedTokenizerBase"
    ) -> "LogitsProcessor":
        """Return a processor with a second branch under the system message."""
        steps = 0 if self.ratio == 1 else None
        return prompted_processor(
            model, tokenizer, self.system, self.template, self.combine, steps, self.place
        )

    def combine(
        self, plain: Float[Tensor, "batch vocab"], prompted: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Return the scores z*; a token that is ruled out in z stays so.

        Args:
            plain: z.
            prompted: z_s.
        """
        mixed = prompted - self.ratio * (prompted - plain)
        return mixed.masked_fill(plain.isneginf(), -math.inf)
