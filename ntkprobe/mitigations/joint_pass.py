"""One forward pass for the next token of both branches of a contrastive method, as one batch.

`generate` runs the plain branch, a row for each prompt. A hook before the model appends the second
branch's rows, with their keys and values, and a hook behind it removes them from the output.
`benchmarks/decoding.py` measures what a method then costs, as a multiple of plain generation.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

_KNOWN = {"input_ids", "attention_mask", "position_ids", "cache_position"}


@dataclass
class JointCache:
    """One cache with the keys and values of both branches.

    Attributes:
        plain: the cache of `generate`; its layers are views of the first rows, without padding.
        both: a cache over all rows, padded on the left.
        rows: how many rows each branch has.
        widths: the columns of both branches.
    """

    plain: Any
    both: Any
    rows: int
    widths: tuple[int, int]

    @classmethod
    def of(cls, plain: Any, own: Any, rows: int) -> "JointCache":
        """Return both caches as one; `own` is modified in place."""
        widths = (plain.get_seq_length(), own.get_seq_length())
        for above, below in zip(plain.layers, own.layers, strict=True):
            below.keys = _stacked(above.keys, below.keys, dim=-2)
            below.values = _stacked(above.values, below.values, dim=-2)
        joined = cls(plain, own, rows, widths)
        joined.share()
        return joined

    def grow(self) -> None:
        """Extend the view of `generate` by the column that a pass has added."""
        self.widths = (self.widths[0] + 1, self.widths[1] + 1)
        self.share()

    def share(self) -> None:
        """Set the layers of `plain` to views of its rows."""
        gap = max(self.widths) - self.widths[0]
        for mine, layer in zip(self.plain.layers, self.both.layers, strict=True):
            mine.keys = layer.keys[: self.rows, :, gap:]
            mine.values = layer.values[: self.rows, :, gap:]

    def fits(self, cache: Any) -> bool:
        """Return whether a cache is the shared one, unchanged since `share`."""
        mine, layer = self.plain.layers[0].keys, self.both.layers[0].keys
        same = mine.untyped_storage().data_ptr() == layer.untyped_storage().data_ptr()
        return cache is self.plain and same and mine.shape[:1] == (self.rows,)


class RowwiseHead:
    """Hooks that apply the output matrix to each of two rows alone, on a CPU.

    With a large vocabulary a product with two rows takes longer than two with one row, which run at
    the speed of the memory.
    """

    def __init__(self) -> None:
        self.below: Tensor | None = None

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Return the call without its second row, which is stored."""
        self.below = None  # that of a pass that failed
        if not args or len(args[0]) != 2 or args[0].device.type != "cpu":
            return None
        above, self.below = args[0].split(1)
        return (above, *args[1:]), kwargs

    def behind(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Return the output for both rows."""
        if self.below is None:
            return None
        below, self.below = self.below, None
        return torch.cat([output, module.forward(below)])


def can_join(kwargs: dict[str, Any], own: Any, rows: int, width: int) -> bool:
    """Return whether a pass is over one token of a plain generation, to which rows can be added.

    Args:
        kwargs: what the model is called with.
        own: the branch's cache.
        rows: of the branch.
        width: of the plain branch, with the new token.
    """
    cache: Any = kwargs.get("past_key_values")
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    tensors = {name for name, value in kwargs.items() if isinstance(value, Tensor)}
    asked = any(kwargs.get(f"output_{what}") for what in ("attentions", "hidden_states"))
    if not isinstance(ids, Tensor) or asked or tensors - _KNOWN:
        return False
    places = kwargs.get("position_ids")
    flat = places is None or tuple(places.shape) == (rows, 1)
    padding = mask is None or (isinstance(mask, Tensor) and tuple(mask.shape) == (rows, width))
    fits = padding and tuple(ids.shape) == (rows, 1) and _plain(cache)
    return (
        flat and fits and cache is not own and _plain(own) and cache.get_seq_length() == width - 1
    )


def joint_inputs(
    kwargs: dict[str, Any], cache: Any, mask: Int[Tensor, "batch seq"], width: int
) -> dict[str, Any]:
    """Return the arguments of the model for the rows of both branches.

    Args:
        kwargs: for the plain branch.
        cache: of both.
        mask: the branch's, with the new token.
        width: of the plain branch, with the new token.
    """
    given, places = kwargs.get("attention_mask"), kwargs.get("position_ids")
    plain = mask.new_ones(len(mask), width) if given is None else given  # None: no padding
    above = plain.long().sum(-1, keepdim=True) - 1 if places is None else places
    changed = {
        "input_ids": kwargs["input_ids"].repeat(2, 1),
        "attention_mask": _stacked(plain, mask.to(plain), dim=-1),
        "position_ids": torch.cat([above, (mask.sum(-1, keepdim=True) - 1).to(above)]),
        "past_key_values": cache,
    }
    return {k: v for k, v in (kwargs | changed).items() if k != "cache_position"}


def plain_output(output: Any, rows: int, cache: Any) -> Any:
    """Return the part of a model's output that belongs to the first rows."""
    alone = copy.copy(output)
    alone.logits = output.logits[:rows]
    alone.past_key_values = cache
    return alone


def _plain(cache: Any) -> bool:
    """Return whether a cache holds all keys and values of all layers, unmodified, and no more.

    A subclass may hold more: MiniMax's has the states of linear attention beside its layers.
    """
    known = type(cache) is DynamicCache and not getattr(cache, "offloading", False)
    layers = cache.layers if known else []
    return bool(layers) and all(type(x) is DynamicLayer and x.is_initialized for x in layers)


def _stacked(above: Tensor, below: Tensor, dim: int) -> Tensor:
    """Return rows above rows, the shorter ones padded with zeros at the front of `dim`."""
    longest = max(above.shape[dim], below.shape[dim])
    behind = (0, 0) * (-dim - 1)
    parts = [pad(x, (*behind, longest - x.shape[dim], 0)) for x in (above, below)]
    return torch.cat(parts)
