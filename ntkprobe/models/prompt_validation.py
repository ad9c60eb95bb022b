"""Prompts and read-outs that do not fit a model, refused with one line that names the prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..errors import UserError
from .batching import context_length
from .validation import require

_IDS = (torch.int64, torch.int32)


def check_prompts(model: nn.Module, prompts: Sequence[Int[Tensor, " _"]], room: int = 0) -> None:
    """Refuse prompts, as token ids, that a model cannot read.

    Args:
        model: the model.
        prompts: the token ids of each prompt.
        room: tokens that come behind each prompt.

    Raises:
        UserError: naming the first prompt that cannot be read.
    """
    require(hasattr(prompts, "__len__"), f"prompts={prompts!r}: give a list of them")
    require(len(prompts), "no prompts: give at least one prompt")
    context, vocabulary = context_length(_text_config(model)), vocabulary_size(model)
    more = f", and with {room} more to come it" if room else ", which"
    for row, ids in enumerate(prompts):
        if not isinstance(ids, Tensor) or ids.ndim != 1 or (len(ids) and ids.dtype not in _IDS):
            raise UserError(
                f"prompt {row} is a {_kind(ids)}: give a 1-D tensor of its token ids; texts go to "
                "measure_kernel, which has a tokenizer"
            )
        require(len(ids), f"prompt {row} is empty: it needs at least one token")
        require(
            context is None or len(ids) + room <= context,
            f"prompt {row} has {len(ids)} tokens{more} exceeds the model's context of {context}: "
            "shorten it, or set max_length",
        )
        require(
            _within(ids, vocabulary),
            f"prompt {row} holds a token outside the vocabulary of {vocabulary}: is the tokenizer "
            "another model's?",
        )


def check_read(
    model: nn.Module, tokens: Sequence[Int[Tensor, " _"] | None], sizes: Sequence[int]
) -> None:
    """Refuse read-outs that do not fit the model or one another.

    Args:
        model: the model.
        tokens: the vocabulary ids read from each prompt, `None` where weightings of all logits are.
        sizes: how many values are read from each.

    Raises:
        UserError: naming the first prompt whose read-out does not fit.
    """
    if len(set(sizes)) != 1 or not sizes[0]:
        raise UserError(
            f"blocks of {sorted(set(sizes))} values: read the same k ≥ 1 of each prompt"
        )
    vocabulary = vocabulary_size(model)
    for row, ids in enumerate(tokens):
        if ids is not None and (not isinstance(ids, Tensor) or ids.dtype not in _IDS):
            raise UserError(f"prompt {row} reads a {_kind(ids)}: give a 1-D tensor of token ids")
        if ids is not None and not _within(ids, vocabulary):
            raise UserError(
                f"prompt {row} reads a token outside the vocabulary of {vocabulary}: ids are "
                "counted from 0"
            )


def vocabulary_size(model: Any) -> int | None:
    """Return how many tokens a model knows; None where neither its configuration nor it says so."""
    size = getattr(_text_config(model), "vocab_size", None)
    if size is None and hasattr(model, "get_input_embeddings"):
        return int(model.get_input_embeddings().weight.shape[0])
    return size


def _text_config(model: nn.Module) -> Any:
    """Return the configuration of the language model, also of a multimodal one, if any."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _within(ids: Int[Tensor, " _"], vocabulary: int | None) -> bool:
    """Return whether token ids are in a vocabulary of this size, if it is known."""
    return int(ids.min()) >= 0 and (vocabulary is None or int(ids.max()) < vocabulary)


def _kind(value: Any) -> str:
    """Return what a value is, for a message."""
    if isinstance(value, Tensor):
        return f"{value.ndim}-D tensor of {value.dtype}"
    return type(value).__name__
