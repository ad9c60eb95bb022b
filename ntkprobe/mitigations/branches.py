"""The second branch of a contrastive decoder: another prompt or model, with a KV cache of its own.

`generate` runs the plain branch. A logits processor runs this one over the same chosen tokens, one
forward pass a token, until it is dropped. Where both branches are of one model, they share a pass
(`joint_pass`).

One forward pass for the next token of both branches of a contrastive method, as one batch.

`generate` runs the plain branch, a row for each prompt. A hook before the model appends the second
branch's rows, with their keys and values, and a hook behind it removes them from the output.
`benchmarks/decoding.py` measures what a method then costs, as a multiple of plain generation.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer

from ..errors import UserError
from ..models.batching import LengthRule, context_length, forgetting_lengths, padding_known
from ..models.generation import (
    input_device,
    left_padded,
    require_numbers,
    text_config,
    try_left_padding,
)
from ..models.precision import clamped_casts

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
    """Return whether a cache holds all keys and values of all layers, unmodified."""
    layers = [] if getattr(cache, "offloading", False) else getattr(cache, "layers", [])
    return bool(layers) and all(type(x) is DynamicLayer and x.is_initialized for x in layers)


def _stacked(above: Tensor, below: Tensor, dim: int) -> Tensor:
    """Return rows above rows, the shorter ones padded with zeros at the front of `dim`."""
    longest = max(above.shape[dim], below.shape[dim])
    behind = (0, 0) * (-dim - 1)
    parts = [pad(x, (*behind, longest - x.shape[dim], 0)) for x in (above, below)]
    return torch.cat(parts)


class Branch:
    """The distribution of the next token under prompts of its own, as an answer grows.

    Rows whose numbers padding would change (`models.batching`) are branches of their own. The cache
    is dropped at lengths from which the model computes differently (`LengthRule`).

    Args:
        model: a causal language model in evaluation mode; one without a KV cache runs the whole
            text again for every token.
        prompts: one for each row, of any lengths.
        around: a context entered for each forward pass, such as an expert's adapter; such a branch
            shares no pass.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.around = model, around
        self.prompts, self.rule = prompts, LengthRule.of(model)
        unequal = len(set(map(len, prompts))) > 1
        if unequal:
            try_left_padding(model, prompts)
        separate = unequal and (self.rule or padding_known(model, "left") is False)
        self.parts = [Branch(model, [prompt], around) for prompt in prompts] if separate else []
        self.ids, self.mask = left_padded(prompts, device=input_device(model))
        self.cache: Any = None
        self.cached = 0  # columns whose keys and values are in the cache
        self.joined: JointCache | None = None
        self.next_logits: Tensor | None = None  # from a shared pass

    @torch.no_grad()
    def logits(self, chosen: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocab"]:
        """Return the logits of the token after the prompts and all that was chosen since.

        Args:
            chosen: the tokens that came to each row since the last call; none in the first.

        Returns:
            Logits. A text that exceeds the model's context, and NaN, are each a `UserError`.
        """
        if self.parts:
            rows = chosen.split(1)
            return torch.cat([one.logits(row) for one, row in zip(self.parts, rows, strict=True)])
        if self.next_logits is None:
            self._append(chosen)
            logits = self._run()
        else:
            logits, self.next_logits = self.next_logits, None
        require_numbers(logits.isnan().any(-1), range(len(logits)))
        return logits

    def join(self, kwargs: dict[str, Any], width: int) -> dict[str, Any] | None:
        """Return the arguments of a pass over the next token of both branches.

        Args:
            kwargs: those with which `generate` calls the model.
            width: the plain branch's, with the new token.

        Returns:
            None where that is not possible; the branch then has a pass of its own.
        """
        rows, cache = len(self.ids), kwargs.get("past_key_values")
        if self.cache is None or self.around is not nullcontext or self.next_logits is not None:
            return None
        if self.rule or padding_known(self.model, "left") is False:
            return None
        if not can_join(kwargs, self.cache, rows, width):
            return None
        if self.joined is None:
            self.joined = JointCache.of(cache, self.cache, rows)
        elif not self.joined.fits(cache):
            self._reset_cache()
            return None
        self._append(kwargs["input_ids"])
        return joint_inputs(kwargs, self.joined.both, self.mask, width)

    def part(self, output: Any) -> Any:
        """Return the plain branch's part of a shared pass; this branch's logits are stored."""
        assert self.joined is not None
        self.joined.grow()
        self.cached = self.ids.shape[1]
        self.next_logits = output.logits[self.joined.rows :, -1]
        return plain_output(output, self.joined.rows, self.joined.plain)

    def _append(self, chosen: Int[Tensor, "batch new"]) -> None:
        self.ids = torch.cat([self.ids, chosen.to(self.ids.device)], 1)
        self.mask = torch.nn.functional.pad(self.mask, (0, chosen.shape[1]), value=1)
        context = context_length(text_config(self.model))
        longest = self.ids.shape[1]  # the longest row has no padding
        if context is not None and longest > context:
            raise UserError(
                f"the contrast prompt and the answer have {longest} tokens and exceed the model's "
                f"context of {context}: shorten the prompts or max_new_tokens"
            )

    def _reset_cache(self) -> None:
        self.joined = self.cache = None
        self.cached = 0

    def _run(self) -> Float[Tensor, "batch vocab"]:
        length = self.ids.shape[1]
        if self.joined is not None or self.rule.regime(length) != self.rule.regime(self.cached):
            self._reset_cache()
        optional = {
            "position_ids": (self.mask.cumsum(-1) - 1).clamp(min=0)[:, self.cached :],
            "logits_to_keep": 1,
            "use_cache": True,
            "past_key_values": self.cache,
        }
        known = _parameters(self.model)
        with self.around(), forgetting_lengths(self.model), clamped_casts(self.model):
            output = self.model(
                input_ids=self.ids[:, self.cached :],
                attention_mask=self.mask,
                **{name: value for name, value in optional.items() if name in known},
            )
        self.cache = getattr(output, "past_key_values", None)
        self.cached = 0 if self.cache is None else self.ids.shape[1]
        return output.logits[:, -1]


def _parameters(model: Any) -> set[str]:
    """Return the parameter names of the forward pass of a model, or of an adapter's base."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(owner.forward).parameters)
