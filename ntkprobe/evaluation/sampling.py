"""Answers drawn from the model's distribution, the same ones whatever the batch.

The largest of log p + Gumbel noise is a draw from p. The noise of a prompt's n-th token comes from
a generator of its own, seeded with the prompt's id: neither batch nor order plays a part.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor

from .settings import AnswerSettings

if TYPE_CHECKING:
    from .answers import Asked


def drawn(asked: "Sequence[Asked]", settings: AnswerSettings) -> list[LogitsProcessor]:
    """Return what makes the arg max a draw for a batch of prompts; nothing at temperature 0."""
    if settings.temperature == 0:
        return []
    return [_Draw([each.id for each in asked], settings.temperature, settings.seed)]


class _Draw(LogitsProcessor):
    """Divides by the temperature and adds each prompt's own noise."""

    def __init__(self, names: Sequence[str], temperature: float, seed: int) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(_seed(name, seed)) for name in names]

    def __call__(self, input_ids: torch.LongTensor, scores: Any) -> Any:
        """Return scores whose arg max is a draw from softmax(scores / temperature)."""
        vocabulary = scores.shape[-1]
        uniform = torch.stack(
            [
                torch.rand(vocabulary, generator=each, dtype=torch.float64)
                for each in self.generators
            ]
        )
        noise = -(-uniform.clamp_min(1e-300).log()).log()
        return scores.double() / self.temperature + noise.to(scores.device)


def _seed(name: str, seed: int) -> int:
    """Return a seed of 63 bits."""
    digest = sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
