"""GGUF files of a very small Llama with random weights, written by the gguf package."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from toy_tokenizers import byte_bpe
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def small_llama(seed: int = 0) -> LlamaForCausalLM:
    """Return a model whose widths are multiples of 32, as quantisation needs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(byte_bpe()),
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                initializer_range=0.2,
                attn_implementation="eager",
            )
        ).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows as llama.cpp has them: the two halves of a head's rotary pairs side by side."""
    width = weight.shape[0] // heads
    order = [
        head * width + half * (width // 2) + pair
        for head in range(heads)
        for pair in range(width // 2)
        for half in range(2)
    ]
    return np.ascontiguousarray(weight[order])


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    kind: str = "F32",
    *,
    architecture: str = "llama",
    template: bool = True,
    pre: str | None = None,
    permute: bool = True,
    bos: bool | None = False,
    further: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """Write a model as a GGUF file.

    Args:
        path: where to.
        model: from `small_llama`.
        kind: how matrices are stored: F32, F16, Q8_0 or Q4_1.
        architecture: what the file calls it.
        template: whether it gets a chat template.
        pre: the name of its pre-tokenizer.
        bos: whether it asks for BOS before a text; None where it does not say.
        permute: whether rows of queries and keys are interleaved, as llama.cpp wants them.
        further: adds what else the file is to have.

    Returns:
        The path.
    """
    config, tokenizer = model.config, byte_bpe()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("small")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, template, pre, bos)
    stored = gguf.GGMLQuantizationType[kind]
    for name, parameter in model.named_parameters():
        key, weight = gguf_name(name), parameter.detach().numpy()
        if permute and ".attn_q." in key:
            weight = interleaved(weight, config.num_attention_heads)
        if permute and ".attn_k." in key:
            weight = interleaved(weight, config.num_key_value_heads)
        if weight.ndim == 1:
            writer.add_tensor(key, weight)
        else:
            writer.add_tensor(key, gguf.quantize(weight, stored), raw_dtype=stored)
    if further:
        further(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a parameter of transformers' Llama."""
    plain = name.removeprefix("model.")
    if plain == "embed_tokens.weight":
        return "token_embd.weight"
    if plain == "norm.weight":
        return "output_norm.weight"
    _, block, rest = plain.split(".", 2)
    return f"blk.{block}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer, template: bool, pre: str | None, bos: bool | None
) -> None:
    import json

    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokenizer))])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in merges])
    writer.add_bos_token_id(tokenizer.eos_token_id)  # transformers 5.17 cannot do without one
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if bos is not None:
        writer.add_add_bos_token(bos)
    if template:
        writer.add_chat_template(tokenizer.chat_template)
