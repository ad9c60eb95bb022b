"""Surgical, Wang et al., ICLR 2025: ablate the false-refusal vector, leave true refusal alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..chat import resolve_template
from ..hooks import Before, Hook, capture, decoder_layers
from ..kernel import last_logits
from ..prompts import PromptSet
from ._interface import Steering, identity, learned

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Surgical(Steering):
    """x ← x − c (x·ŵ) ŵ on every block's input.

    Attributes:
        coefficient: c; 0 changes nothing.
        template: how prompts become tokens.
        vector: ŵ, `[hidden]`.
    """

    coefficient: float = 1.0
    template: str = "auto"
    vector: Tensor | None = learned()

    source: ClassVar[str] = "Wang et al., ICLR 2025, arXiv 2410.03415"

    def fit(
        self, model: nn.Module, tokenizer: "PreTrainedTokenizerBase", prompts: PromptSet
    ) -> Self:
        """Return a copy with the vector (for now: half-way up, a plain difference in means)."""
        template = resolve_template(tokenizer, self.template)
        means = []
        for group in ("seemingly_toxic", "normal"):
            rows = prompts.in_group(group)
            ids = [torch.tensor(template.encode(tokenizer, prompt)) for prompt in rows]
            with torch.no_grad(), capture(model, len(decoder_layers(model)) // 2) as found:
                last_logits(model, ids)
            last = [len(row) - 1 for row in ids]
            means.append(found[0][range(len(ids)), last].double().mean(0))
        vector = torch.nn.functional.normalize(means[0] - means[1], dim=0)
        return replace(self, vector=vector.float().cpu(), fitted_on=identity(model))

    def hooks(self, model: nn.Module) -> Sequence[tuple[nn.Module, Hook | Before]]:
        """Return a hook on every block's input; none at all for a coefficient of 0."""
        if self.coefficient == 0 or self.vector is None:
            return []

        def ablate(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            state = args[0]
            unit = self.vector.to(state)  # type: ignore[union-attr]
            return (state - self.coefficient * (state @ unit)[..., None] * unit, *args[1:]), kwargs

        return [(block, Before(ablate)) for block in decoder_layers(model)]
