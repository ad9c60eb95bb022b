"""A tiny model of every causal family of the installed transformers, made by shrinking its config.

Field names are shared between families, so that most configurations can be shrunk without knowing
them. What cannot be made that way, or not tiny, has no model.
"""

import contextlib
import signal
from collections.abc import Generator
from typing import Any

import torch
from architectures import VOCABULARY, perturbed
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(CONFIG_MAPPING))
LARGEST = 2_000_000  # parameters

_WIDTH, _HEADS, _LAYERS, _EXPERTS = 16, 4, 2, 4
_SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "embedding_size", "dim"], _WIDTH),
    **dict.fromkeys(["word_embed_proj_dim", "lru_width", "attention_hidden_size"], _WIDTH),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], _LAYERS),
    **dict.fromkeys(["decoder_layers", "encoder_layers"], _LAYERS),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads"], _HEADS),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads"], _HEADS),
    **dict.fromkeys(["num_key_value_heads", "multi_query_group_num"], 2),
    **dict.fromkeys(["head_dim", "attention_head_dim", "v_head_dim", "rotary_dim"], 4),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim"], 4),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"], 24),
    **dict.fromkeys(["decoder_ffn_dim", "encoder_ffn_dim", "dff", "feed_forward_size"], 24),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 12),
    **dict.fromkeys(["intermediate_size_mlp", "shared_intermediate_size"], 24),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx"], 64),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], _EXPERTS),
    **dict.fromkeys(["moe_num_experts", "num_routed_experts"], _EXPERTS),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_top_k"], 2),
    **dict.fromkeys(["moe_k", "top_k_experts"], 2),
    **dict.fromkeys(["n_group", "topk_group", "n_shared_experts"], 1),
    **dict.fromkeys(["kv_lora_rank", "q_lora_rank"], 8),
    **dict.fromkeys(["mamba_n_heads", "num_heads", "mamba_num_heads"], _HEADS),
    **dict.fromkeys(["mamba_d_state", "state_size", "ssm_state_size"], 4),
    **dict.fromkeys(["mamba_n_groups", "n_groups", "mamba_ngroups"], 1),
    **dict.fromkeys(["mamba_d_head", "mamba_head_dim", "mamba_headdim"], 8),
    **dict.fromkeys(["linear_num_key_heads", "linear_num_value_heads"], 2),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim"], 4),
    **dict.fromkeys(["time_step_rank", "mamba_dt_rank"], 2),
    **dict.fromkeys(["sliding_window", "window_size"], 4),
    **dict.fromkeys(["attn_layer_offset", "expert_layer_offset"], 1),
    **dict.fromkeys(["attn_layer_period", "expert_layer_period"], 2),
    "attn_layer_indices": [1],
    **dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id"], None),
    "vocab_size": VOCABULARY,
    "layer_types": None,
    "mlp_layer_types": None,
    "type_vocab_size": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 4,
    "is_decoder": True,
    "use_cache": True,
}


def shrunk(family: str) -> Any:
    """Return the family's configuration, small, with a layer of each of two kinds if it has any."""
    kind = CONFIG_MAPPING[family]
    known = kind().to_dict()
    sizes = {name: value for name, value in _SIZES.items() if name in known}
    if "qk_rope_head_dim" in known:
        sizes.pop("head_dim", None)  # the sum of two others
    for name in ("layer_types", "mlp_layer_types"):
        kinds = list(dict.fromkeys(known.get(name) or []))[:_LAYERS]
        if len(kinds) == _LAYERS:
            sizes[name] = kinds
    return kind(**sizes)


def tiny(family: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a model of the family in evaluation mode.

    Raises:
        ValueError: if it is not small enough.
    """
    config = shrunk(family)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for each in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        each._experts_implementation = "eager"
    return perturbed(model, 0).to(dtype).eval()


@contextlib.contextmanager
def at_most(seconds: float) -> Generator[None]:
    """Interrupt the block with `TimeoutError` when it takes longer."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
