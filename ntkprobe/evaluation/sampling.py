"""Sampling whose results do not depend on the batch.

The arg max of log p + Gumbel noise is a sample from p. Each prompt has a generator of its own,
seeded with its id, so that neither the batch nor the order of prompts changes an answer.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import torch
from transformers import LogitsProcessor

from .settings import AnswerSettings


def sampling_processors(ids: Sequence[str], settings: AnswerSettings) -> list[LogitsProcessor]:
    """Return processors under which greedy decoding samples; none at temperature 0.

    Args:
        ids: of the prompts of a batch, in the order of its rows.
        settings: temperature and seed.
    """
    if settings.temperature == 0:
        return []
    return [_GumbelNoise(ids, settings.temperature, settings.seed)]


class _GumbelNoise(LogitsProcessor):
    """Divides scores by the temperature and adds each prompt's own Gumbel noise."""

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
    digest = sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
