"""Additive attention masks from booleans of who attends to whom, also for sliding windows.

For passes over tries of phrases and cached prompts, where a token does not attend to all columns
before it.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def additive_masks(
    model: Any,
    allowed: Bool[Tensor, "batch queries keys"],
    of_queries: Int[Tensor, "batch queries"],
    of_keys: Int[Tensor, "batch keys"],
) -> Tensor | dict[str, Tensor]:
    """Return the additive 4-D mask, or one for each kind of layer where a sliding window bites.

    Args:
        model: says its window, and which layers slide.
        allowed: who attends to whom.
        of_queries: positions in the text, by which a window counts.
        of_keys: likewise.

    Returns:
        What transformers' models take as `attention_mask`.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    near = allowed & (of_queries[:, :, None] - of_keys[:, None, :] < (window or torch.inf))
    everywhere = _additive(allowed, model.dtype)
    if "sliding_attention" not in kinds or bool((near == allowed).all()):
        return everywhere
    sliding = _additive(near, model.dtype)
    if kinds == {"sliding_attention"}:
        return sliding
    return {"full_attention": everywhere, "sliding_attention": sliding}


def _additive(
    allowed: Bool[Tensor, "batch queries keys"], dtype: torch.dtype
) -> Float[Tensor, "batch 1 queries keys"]:
    # float32's minimum also in float64: models whose softmax is float32 would make -inf of more.
    lowest = torch.finfo(torch.float32 if dtype == torch.float64 else dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, lowest
    )[:, None]
