"""Prompt, a baseline of Shi et al., ACL 2024: a system message that asks for helpfulness."""

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

HELPFUL = (
    "You are an assistant that always prioritizes helpfulness. That is, you always give answers "
    "to any user queries."
)
"""The baseline's own setting."""


@dataclass(frozen=True, eq=False)
class Prompt(Decoding):
    """z* = z_p for every token: the answer under the system message.

    As a processor it works wherever the other methods do, at the price of a plain branch that is
    run and not used. To serve a model, put the message into its prompts.

    Attributes:
        system: the message; an empty one changes nothing.
        template: what the prompts are written with; without a system role, the message begins the
            user's turn.
        place: `system`, or `user` for the beginning of the user's turn, where the authors have it.
    """

    system: str = HELPFUL
    template: str = "auto"
    place: str = "system"

    source: ClassVar[str] = "Prompt: a baseline of Shi et al., ACL 2024, arXiv 2401.17633"

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        require(self.place in PLACES, f"place is {self.place!r}: choose from {list(PLACES)}")

    def logits_processor(
        self, model: Any, tokenizer: "PreTrainedTokenizerBase"
    ) -> "LogitsProcessor":
        """Return a processor that puts the logits under the message in place of the plain ones."""
        steps = None if self.system.strip() else 0
        return prompted_processor(
            model, tokenizer, self.system, self.template, self.combine, steps, self.place
        )

    def combine(
        self, plain: Float[Tensor, "batch vocab"], prompted: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Return the logits under the message; a token that is ruled out in z stays so.

        Args:
            plain: z.
            prompted: z_p.
        """
        return prompted.masked_fill(plain.isneginf(), float("-inf"))
