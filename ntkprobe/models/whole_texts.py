"""Models whose passes have to be over whole texts, or token by token: by rule, and by a trial.

Several continuations may stand behind a prompt in one pass, and a token may be read off a pass that
holds what comes behind it, only where a token sees what the mask allows and nothing else.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn

from .batching import Computation, computation, forgetting_lengths, tolerance
from .validation import adapter_variants

STATES = {"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "mamba2", "recurrent"}
"""Kinds of layers that carry something along the text beside keys and values."""

_TRIED: WeakKeyDictionary[nn.Module, dict[Computation, bool]] = WeakKeyDictionary()


def mixes_continuations(model: nn.Module) -> str:
    """Return why continuations of a prompt would mix in one pass; empty where no rule says so.

    Args:
        model: a causal language model.
    """
    config: Any = getattr(model, "config", None)
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = {
        str(kind)
        for name in ("layer_types", "layers_block_type", "block_types")
        for kind in getattr(text, name, None) or ()
    }
    if getattr(model, "_is_stateful", False) or kinds & STATES:
        return "a state runs along the text"
    if any(
        "alora" in type(v).__name__.lower() for m in model.modules() for v in adapter_variants(m)
    ):
        return "an activated LoRA looks for its invocation in the text of the pass"
    return ""


def hooked(model: nn.Module) -> bool:
    """Return whether a module has a hook that is not of transformers and may see whole texts."""
    return any(
        not str(getattr(hook, "__module__", "")).startswith("transformers.")
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )


@torch.no_grad()
def looks_ahead(model: Any, text: Int[Tensor, " seq"], length: int) -> bool:
    """Return whether what stands behind a token changes its logits: the model is not causal.

    Tried once a model, by two plain passes; under hooks it is not asked, since they may look at a
    whole text by intention.

    Args:
        model: a language model in evaluation mode.
        text: token ids.
        length: how many of them stay; there is at least one more.
    """
    if hooked(model):
        return False
    key = computation(model)
    tried = _TRIED.setdefault(model, {})
    if key not in tried:
        with forgetting_lengths(model):
            whole, alone = (
                model(each[None], use_cache=False).logits[0, length - 1].double()
                for each in (text, text[:length])
            )
        spread = (alone - alone.mean()).norm().clamp(min=1e-12)
        allowed = tolerance(next(model.parameters()).dtype)
        tried[key] = bool((whole - alone).norm() > allowed * spread)
    return tried[key]
