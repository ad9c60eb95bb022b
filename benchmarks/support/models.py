"""Randomly initialised models of stated shapes, and prompts to measure them on."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from ntkprobe.kernel import Probe, top_tokens


@dataclass(frozen=True)
class Shape:
    """A Qwen2, tied, with as many key-value heads as a quarter of its heads of 64."""

    width: int = 512
    depth: int = 8
    vocabulary: int = 8000
    spread: float = 0.02  # of the initial weights

    def build(self, seed: int = 0) -> nn.Module:
        """Return the model, in float32 and evaluation mode."""
        torch.manual_seed(seed)
        heads = self.width // 64
        config = Qwen2Config(
            hidden_size=self.width,
            intermediate_size=self.width * 11 // 4,
            num_hidden_layers=self.depth,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4),
            vocab_size=self.vocabulary,
            tie_word_embeddings=True,
            initializer_range=self.spread,
            max_position_embeddings=1024,
        )
        model = Qwen2ForCausalLM(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("bias", "norm.weight")):  # else zeros and ones, as at birth
                    parameter.add_(self.spread * torch.randn_like(parameter))
        return model.eval()


def ragged_prompts(
    count: int, lengths: tuple[int, int], vocabulary: int, seed: int = 0
) -> list[Tensor]:
    """Return prompts of evenly spread lengths, in random order, of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(*lengths, count).round().long()
    shuffled = spread[torch.randperm(count, generator=generator)].tolist()
    return [torch.randint(0, vocabulary, (length,), generator=generator) for length in shuffled]


def top_probes(model: nn.Module, prompts: list[Tensor], k: int) -> list[Probe]:
    """Return probes of each prompt's top k tokens."""
    return [
        Probe(ids, tokens)
        for ids, tokens in zip(prompts, top_tokens(model, prompts, k), strict=True)
    ]
