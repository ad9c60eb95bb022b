"""Tiny random models of every family, from real configuration classes, and prompts for them."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ntkprobe.kernel import Probe, top_tokens

VOCABULARY = 48
_SPECIAL = dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)
_SIZES = _SPECIAL | dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=32,
)
_GROUPED = _SIZES | dict(num_key_value_heads=2)
_HEADS = _GROUPED | dict(head_dim=8)
_GEMMA = _HEADS | dict(query_pre_attn_scalar=8, sliding_window=4)
_GPT2 = _SPECIAL | dict(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=32)
_OPT = _SIZES | dict(ffn_dim=24, word_embed_proj_dim=12, pad_token_id=1)
_EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
_QWEN_EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=12)
_SOFTCAPS = dict(final_logit_softcapping=3.0, attn_logit_softcapping=5.0)
_PLAIN_ROPE = dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT2),
    "opt": ("opt", _OPT),
    "gpt_neox": ("gpt_neox", _SIZES),
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", _GROUPED | dict(sliding_window=4)),
    "qwen2-tied": ("qwen2", _GROUPED | dict(tie_word_embeddings=True)),
    "qwen2-untied": ("qwen2", _GROUPED | dict(tie_word_embeddings=False)),
    "qwen3": ("qwen3", _HEADS),
    "gemma": ("gemma", _HEADS),
    "gemma2": ("gemma2", _GEMMA | _SOFTCAPS),
    "gemma3": ("gemma3_text", _GEMMA),
    "phi": ("phi", _GROUPED | dict(partial_rotary_factor=0.5, qk_layernorm=True)),
    "phi3": ("phi3", _GROUPED),
    "olmo2": ("olmo2", _GROUPED),
    "mixtral": ("mixtral", _GROUPED | _EXPERTS),
    "qwen3_moe": ("qwen3_moe", _HEADS | _QWEN_EXPERTS),
    "gpt_oss": ("gpt_oss", _HEADS | _EXPERTS | _PLAIN_ROPE | dict(sliding_window=4)),
}
# Variations of others that the quick suite has: `make check` has them, too.
_SLOW = (
    *(
        "llama",
        "mistral",
        "qwen2-untied",
        "qwen3",
        "gemma",
        "gemma3",
        "phi",
        "phi3",
        "opt",
        "olmo2",
    ),
    *("mixtral", "qwen3_moe"),
)


def cases(names: Iterable[str]) -> list[Any]:
    """Return the names as parameters of a test, the variations among them for the slow suite."""
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in _SLOW)) for n in names]


ARCHITECTURES = cases(CONFIGS)
DENSE_FAMILIES = cases(n for n in CONFIGS if n not in ("mixtral", "qwen3_moe", "gpt_oss"))


def build(
    name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> nn.Module:
    """Return a tiny model in evaluation mode, with no norm left at 1 and no bias at 0."""
    kind, settings = CONFIGS[name]
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[kind](**(settings | changes))
    config._experts_implementation = (
        "eager"  # the default, grouped_mm, knows neither float64 nor vmap
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return perturbed(model, seed).to(dtype).eval()


def perturbed(model: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Return the model with noise added to every parameter, the LoRA's zero matrices too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        parameter.data.add_(scale * noise.to(parameter.dtype))
    return model


def with_lora(
    model: nn.Module, targets: str | list[str] = "all-linear", **changes: Any
) -> nn.Module:
    """Return the model with a LoRA adapter of rank 2 on `targets`, its B no longer zero."""
    settings = dict(
        r=2, lora_alpha=4, lora_dropout=0.1, target_modules=targets, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, LoraConfig(**(settings | changes)))
    lora = nn.ParameterList(p for n, p in adapted.named_parameters() if "lora_" in n)
    perturbed(lora, seed=1)
    return adapted.eval()


def ragged_prompts(lengths: tuple[int, ...] = (5, 3, 9, 1), seed: int = 0) -> list[torch.Tensor]:
    """Return prompts of unequal length from few tokens, so that they repeat and share them."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY // 3, (length,), generator=generator) for length in lengths]


def make_probes(model: nn.Module, k: int = 3, **settings: Any) -> list[Probe]:
    """Return probes that read each prompt's top tokens, the first of its own tokens among them.

    A tied matrix's cross terms show only where a token read is also a token of some prompt.
    """
    prompts = ragged_prompts(**settings)
    tops = top_tokens(model, prompts, k)
    return [
        Probe(ids, torch.cat([ids[:1], top[top != ids[0]][: k - 1]]))
        for ids, top in zip(prompts, tops, strict=True)
    ]


def worst_block_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest relative error of a block in the Frobenius norm; of a zero, infinite."""
    difference = torch.linalg.matrix_norm((found - expected).transpose(1, 2))
    size = torch.linalg.matrix_norm(expected.transpose(1, 2))
    return float(torch.where(difference == 0, 0.0, difference / size).max())
