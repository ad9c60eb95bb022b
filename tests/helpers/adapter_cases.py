"""Adapters of every kind of peft's, trained (every trained number moved) and saved by peft."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from tiny_runs import tiny_model
from torch import nn

ENDS = ["embed_tokens", "lm_head"]
ROWS = [1, 5]

# Options of LoraConfig whose adapters are measured merged and beside the base.
LORA: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 7}},
    "one layer": {"layers_to_transform": [0]},
    "a bias of B": {"lora_bias": True},
    "all biases": {"bias": "all"},
    "biases of targets": {"bias": "lora_only"},
    "norms whole": {"modules_to_save": ["norm", "input_layernorm"]},
    "head whole": {"modules_to_save": ["lm_head"]},
    "embedding whole": {"modules_to_save": ["embed_tokens"]},
    "ends whole": {"modules_to_save": ENDS},
    "ends whole, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "rows": {"trainable_token_indices": ROWS},
    "rows of the head": {"trainable_token_indices": {"lm_head": ROWS}},
    "other rows of each end": {
        "trainable_token_indices": {"lm_head": ROWS, "embed_tokens": [2, 3]}
    },
    "on the head": {"target_modules": ["q_proj", "lm_head"]},
    "on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "on the embedding alone": {"target_modules": ["embed_tokens"]},
    "on both ends": {"target_modules": ENDS},
    "OLoRA": {"init_lora_weights": "olora"},
    "OLoRA on the head": {
        "init_lora_weights": "olora",
        "target_modules": ["q_proj", "lm_head"],
    },
    "PiSSA": {"init_lora_weights": "pissa"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}
# Those of other methods and variants, which are measured merged.
MERGED: dict[str, dict[str, Any]] = {
    "ends by one pair": {"target_modules": ENDS, "ensure_weight_tying": True},
    "DoRA": {"use_dora": True},
    "DoRA on the head": {"use_dora": True, "target_modules": ["q_proj", "lm_head"]},
}
WHOLE_MATRICES_FLOAT32 = ("OLoRA", "OLoRA on the head", "PiSSA")  # float64 is none of theirs


def lora_config(**changes: Any) -> LoraConfig:
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    return LoraConfig(task_type="CAUSAL_LM", **(settings | changes))


def loha_config() -> LoHaConfig:
    return LoHaConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")


def trained(model: nn.Module, config: Any, seed: int = 1) -> PeftModel:
    """Return the model with an adapter every trained number of which has moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.2 * noise.to(parameter.dtype))
    return adapted.eval()


def save(adapted: PeftModel, folder: Path, **saving: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(folder, **({"save_embedding_layers": False} | saving))
    return folder


def loaded_by_peft(base: nn.Module, folder: Path) -> PeftModel:
    """Return the adapter as peft itself loads it: unmerged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, str(folder)).eval()


def base_model(tied: bool, dtype: torch.dtype = torch.float64) -> nn.Module:
    return tiny_model(tie_word_embeddings=tied).to(dtype)


def dtype_of(name: str) -> torch.dtype:
    return torch.float32 if name in WHOLE_MATRICES_FLOAT32 else torch.float64


def resized(make: Callable[[], nn.Module], rows: int) -> nn.Module:
    """Return a model with more or fewer rows of embeddings, the new ones random."""
    model = make()
    with torch.random.fork_rng():
        torch.manual_seed(9)
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model
