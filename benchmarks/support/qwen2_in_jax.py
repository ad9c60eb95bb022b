"""Qwen2 written again in JAX, for neural-tangents, which takes JAX functions only.

The embedding is a product with one-hot rows: neural-tangents' structured derivatives have no rule
for a lookup.
"""

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
import torch
from jax import numpy as jnp
from torch import Tensor, nn

from ntkprobe.kernel import Probe

# Its experimental part wants TensorFlow, and is not needed.
sys.modules.setdefault("neural_tangents.experimental", ModuleType("experimental"))
import neural_tangents  # ruff: ignore[module-import-not-at-top-of-file]

Weights = dict[str, Any]


def compiled(
    model: nn.Module, probes: Sequence[Probe], implementation: int
) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """Return the kernel as a jitted function, and its arguments."""
    longest = max(len(probe.input_ids) for probe in probes)
    weights = {name: jnp.asarray(p.detach().numpy()) for name, p in model.named_parameters()}

    def read(theta: Weights, x: Any) -> Any:
        return read_values(theta, x, longest, model.config)

    ntk = neural_tangents.empirical_ntk_fn(
        read, trace_axes=(), vmap_axes=0, implementation=implementation
    )
    jitted = jax.jit(lambda x, theta: ntk(x, None, theta))
    x = jnp.asarray(np.stack([packed(probe, longest) for probe in probes]))
    return lambda *arguments: torch.tensor(np.asarray(jitted(*arguments))), (x, weights)


def packed(probe: Probe, longest: int) -> np.ndarray:
    """Return a probe's tokens padded, its last position, and the tokens read, in one row."""
    ids = probe.input_ids.tolist()
    padded = ids + ids[-1:] * (longest - len(ids))
    return np.array([*padded, len(ids) - 1, *probe.tokens.tolist()])


def read_values(theta: Weights, x: Any, longest: int, config: Any) -> Any:
    """Return the values that the probes read, `[n, k]`."""
    ids, last, tokens = x[:, :longest], x[:, longest], x[:, longest + 1 :]
    table = theta["model.embed_tokens.weight"]
    hidden = jax.nn.one_hot(ids, len(table)) @ table
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        block = {n.removeprefix(prefix): w for n, w in theta.items() if n.startswith(prefix)}
        hidden = decoder(block, hidden, config)
    hidden = norm(hidden, theta["model.norm.weight"], config)
    end = jnp.einsum("nt,ntd->nd", jax.nn.one_hot(last, longest), hidden)
    return jnp.einsum("nd,nkd->nk", end, jax.nn.one_hot(tokens, len(table)) @ table)


def decoder(w: Weights, hidden: Any, config: Any) -> Any:
    """Return a block's output."""
    x = norm(hidden, w["input_layernorm.weight"], config)
    hidden = hidden + attention(w, x, config)
    x = norm(hidden, w["post_attention_layernorm.weight"], config)
    gate, up = (x @ w[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    return hidden + (jax.nn.silu(gate) * up) @ w["mlp.down_proj.weight"].T


def attention(w: Weights, x: Any, config: Any) -> Any:
    """Return grouped-query attention's output."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size, seq = config.hidden_size // heads, x.shape[1]

    def project(name: str) -> Any:
        y = x @ w[f"self_attn.{name}_proj.weight"].T + w[f"self_attn.{name}_proj.bias"]
        return y.reshape(*y.shape[:2], -1, size).transpose(0, 2, 1, 3)

    q, k, v = rotated(project("q"), config), rotated(project("k"), config), project("v")
    q = q.reshape(q.shape[0], groups, heads // groups, seq, size)
    scores = jnp.einsum("ngrtd,ngsd->ngrts", q, k) / size**0.5
    scores = jnp.where(jnp.tril(jnp.ones((seq, seq), bool)), scores, -1e30)
    mixed = jnp.einsum("ngrts,ngsd->ntgrd", jax.nn.softmax(scores, -1), v)
    return mixed.reshape(*x.shape[:2], -1) @ w["self_attn.o_proj.weight"].T


def rotated(x: Any, config: Any) -> Any:
    """Return queries or keys with rotary positions."""
    size, seq = x.shape[-1], x.shape[-2]
    base = config.rope_parameters["rope_theta"]
    angles = jnp.arange(seq)[:, None] * base ** (-jnp.arange(0, size, 2) / size)
    angles = jnp.concatenate([angles, angles], -1)
    half = jnp.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1)
    return x * jnp.cos(angles) + half * jnp.sin(angles)


def norm(x: Any, weight: Any, config: Any) -> Any:
    """Return RMSNorm's output."""
    return weight * x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps)
