"""Which prompts may go through a model together: those that each have the numbers they have alone.

For most models that is all of them, since padding changes nothing. Where the rotary embedding looks
at the longest text of a pass, it is texts of one regime:

| rope type          | what a pass's longest text decides                                       |
|--------------------|--------------------------------------------------------------------------|
| `longrope` (Phi-3) | long or short factors, by `original_max_position_embeddings`             |
| `dynamic` (NTK)    | the base, over `max_position_embeddings`; kept for later, shorter passes |

A text's own regime is that of its length. A next token's distribution belongs to the text before
it, whatever comes after: so does that of an answer, or a refusal phrase, that crosses a limit. That
is what `generate` computes, which for longrope drops its cache where the factors change.

Other models whose numbers depend on padding are found by trying it with the shortest and the
longest prompt (`logits.try_padding`, `generation.try_left_padding`), and again where longer ones
come. Each prompt then has a pass of its own.
"""

import logging
from collections.abc import Generator, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import count
from .peft_modules import acting_adapters

_LOG = logging.getLogger(__name__)

Regime = tuple[int, int]
Computation = tuple[torch.dtype | None, str | None, frozenset[str]]
"""A model's floating-point type and its implementation of attention: what a trial holds for."""

_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}  # much is float32 inside, and may be TF32
_TOLERANCE_LOW_PRECISION = 0.1  # of the logits' spread; positions that are off change more


@dataclass(frozen=True)
class _Verdict:
    """Whether padding left a model's logits alone, in a pass of texts of up to so many tokens."""

    holds: bool
    longest: int


_TRIED: WeakKeyDictionary[nn.Module, dict[tuple[str, Computation], _Verdict]] = WeakKeyDictionary()


@dataclass(frozen=True)
class LengthRule:
    """How what a model computes depends on the longest text of a pass.

    Attributes:
        limits: lengths beyond each of which it computes something else.
        growing: lengths beyond each of which it computes something else at every length.
    """

    limits: tuple[int, ...] = ()
    growing: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> "LengthRule":
        """Return the rule of a model, read off its rotary embeddings."""
        limits: set[int] = set()
        growing: set[int] = set()
        for module, layer_type, kind in _rotary_embeddings(model):
            settings = _rope_settings(module, layer_type)
            original = settings.get("original_max_position_embeddings")
            if "dynamic" in kind:
                growing.add(int(module.original_max_seq_len))  # type: ignore[arg-type]
            elif original and (kind == "longrope" or "long_mscale" in settings):
                limits.add(int(original))
        return cls(tuple(sorted(limits)), tuple(sorted(growing)))

    def __bool__(self) -> bool:
        """Return whether anything depends on the length."""
        return bool(self.limits or self.growing)

    def regime(self, length: int) -> Regime:
        """Return what texts have in common that are computed alike."""
        return (
            sum(length > limit for limit in self.limits),
            max([0, *(length - limit for limit in self.growing)]),
        )

    def spans(self, length: int, more: int) -> list[tuple[int, int]]:
        """Return the runs `(first, last)` of 0 … `more` further tokens within one regime each."""
        if not self:
            return [(0, more)]
        regimes = [self.regime(length + extra) for extra in range(more + 1)]
        firsts = [e for e in range(more + 1) if not e or regimes[e] != regimes[e - 1]]
        return list(zip(firsts, [*(first - 1 for first in firsts[1:]), more], strict=True))


def together(
    model: nn.Module, prompts: Sequence[Sized], *, new_tokens: int = 0, side: str = "right"
) -> list[list[int]]:
    """Return the rows of prompts in groups, each of which may share a padded pass.

    Args:
        model: the model.
        prompts: token ids of each prompt.
        new_tokens: tokens that come behind each, on which it is to agree as well.
        side: where they are padded, `left` or `right`.

    Returns:
        Groups in the order of their first rows, and rows in the order given.
    """
    if len(prompts) == 1:
        return [[0]]
    if padding_known(model, side) is False:
        return [[row] for row in range(len(prompts))]
    rule = LengthRule.of(model)
    if not rule:
        return [list(range(len(prompts)))]
    groups: dict[tuple[Regime, ...], list[int]] = {}
    for row, ids in enumerate(prompts):
        regimes = tuple(rule.regime(len(ids) + extra) for extra in range(new_tokens + 1))
        groups.setdefault(regimes, []).append(row)
    return list(groups.values())


def split(
    model: nn.Module,
    prompts: Sequence[Sized],
    batch_size: int,
    *,
    new_tokens: int = 0,
    side: str = "right",
) -> Iterator[list[int]]:
    """Yield batches of rows, in the order given within each group of `together`."""
    for rows in together(model, prompts, new_tokens=new_tokens, side=side):
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


@contextmanager
def forgetting_lengths(model: nn.Module) -> Generator[None]:
    """Let no pass inside the block depend on an earlier one's texts, and leave no trace of any.

    A `dynamic` rotary embedding keeps the base of the longest text that it has seen; a `longrope`
    one writes into a buffer, which has no derivative in forward mode, so that each pass gets its
    own.
    """
    keeping = list(
        dict.fromkeys(
            module
            for module, _, kind in _rotary_embeddings(model)
            if kind == "longrope" or "dynamic" in kind
        )
    )
    before = [(vars(module).copy(), module._buffers.copy()) for module in keeping]
    handles = [module.register_forward_pre_hook(_forget) for module in keeping]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, (attributes, buffers) in zip(keeping, before, strict=True):
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            module._buffers.update(buffers)


def context_length(config: Any) -> int | None:
    """Return how long a text may be for a model of this configuration, if it says.

    `max_position_embeddings`; with `dynamic` rotary embeddings that is what they scale up from, by
    their factor.
    """
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and context <= 0:  # XLNet's, which has no limit, is -1
        return None
    given = getattr(config, "rope_parameters", None)
    each = [given, *given.values()] if isinstance(given, dict) else []
    factors = [
        float(one.get("factor") or 1)
        for one in each
        if isinstance(one, dict) and "dynamic" in str(one.get("rope_type"))
    ]
    return None if context is None else int(context * max([1.0, *factors]))


def tolerance(dtype: torch.dtype) -> float:
    """Return by how much of their spread logits may differ where a model computes the same."""
    return _TOLERANCE.get(dtype, _TOLERANCE_LOW_PRECISION)


def computation(model: nn.Module) -> Computation:
    """Return what about a loaded model decides whether its passes may be split or padded."""
    dtype = next((p.dtype for p in model.parameters()), None)
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return dtype, attention, acting_adapters(model)


def padding_known(model: nn.Module, side: str) -> bool | None:
    """Return whether padding on a side leaves a model's numbers alone; None if never tried."""
    verdict = _TRIED.get(model, {}).get((side, computation(model)))
    return None if verdict is None else verdict.holds


def pair_to_try(
    model: nn.Module, prompts: Sequence[Sized], *, new_tokens: int = 0, side: str = "right"
) -> tuple[int, int] | None:
    """Return the rows of the shortest and the longest prompt that may share a pass, to try it with.

    An effect of padding may begin beyond some length, so that a shorter pair could miss it.

    Returns:
        None if there is nothing to try: padding is known to change the model's numbers, or not to
        do so in passes as long, or no two prompts would be padded. Of several groups of `together`
        it is that with the longest prompt of which this is not so.
    """
    verdict = _TRIED.get(model, {}).get((side, computation(model)))
    if verdict is not None and not verdict.holds:
        return None
    tried = 0 if verdict is None else verdict.longest
    pairs = []
    for rows in together(model, prompts, new_tokens=new_tokens, side=side):
        order = sorted(rows, key=lambda row: len(prompts[row]))
        short, long = order[0], order[-1]
        if len(prompts[long]) > max(len(prompts[short]), tried):
            pairs.append((short, long))
    return max(pairs, key=lambda pair: len(prompts[pair[1]]), default=None)


def keep_verdict(
    model: nn.Module,
    side: str,
    padded: Float[Tensor, "rows vocab"],
    alone: Float[Tensor, "rows vocab"],
    longest: int,
) -> None:
    """Keep whether padding leaves a model's logits alone, and say so where it does not.

    Args:
        model: the model.
        side: where the prompts were padded.
        padded: the logits of prompts in one batch.
        alone: those of the same prompts, each in a pass of its own.
        longest: tokens of the longest of the prompts.
    """
    expected, found = alone.double(), padded.double()
    if not bool(expected.isfinite().all()):
        return  # the measurement itself refuses such logits, by the prompt's number
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    error = float(((found - expected).norm(dim=-1) / spread.clamp(min=1e-12)).max())
    allowed = tolerance(padded.dtype)
    holds = error <= allowed  # unlike `not error > allowed`, false for NaN
    _TRIED.setdefault(model, {})[side, computation(model)] = _Verdict(holds, longest)
    if not holds:
        _LOG.warning(
            "%s gives a prompt other logits in a batch padded on the %s than alone (off by %.2g): "
            "one prompt at a time",
            type(model).__name__,
            side,
            error,
        )


def length_batches(input_ids: Sequence[Sized], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of row numbers, the longest prompts first, so that little is padded.

    Args:
        input_ids: encoded prompts.
        batch_size: rows in a batch at most.

    Yields:
        Row numbers; each occurs once. A batch size less than 1 is a `UserError`.
    """
    size = count("batch_size", batch_size)
    order = sorted(range(len(input_ids)), key=lambda row: -len(input_ids[row]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _rotary_embeddings(model: nn.Module) -> Iterator[tuple[nn.Module, str | None, str]]:
    """Yield each rotary embedding with its rope type, by type of layer where there are several."""
    for module in model.modules():
        found = getattr(module, "rope_type", None)
        if isinstance(found, dict):
            yield from ((module, str(layer), str(kind)) for layer, kind in found.items())
        elif isinstance(found, str):
            yield module, None, found


def _rope_settings(module: nn.Module, layer_type: str | None) -> dict[str, Any]:
    given = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
    found = given if layer_type is None else given.get(layer_type)
    return found or {}


def _forget(module: nn.Module, *_inputs: Any) -> None:
    """Put a rotary embedding to where it was before its first pass."""
    for _, layer_type, kind in _rotary_embeddings(module):
        prefix = "" if layer_type is None else f"{layer_type}_"
        present = getattr(module, f"{prefix}inv_freq", None)
        if kind == "longrope" and present is not None:
            module._buffers[f"{prefix}inv_freq"] = present.clone()
        elif "dynamic" in kind:
            original: Any = getattr(module, f"{prefix}original_inv_freq")
            device = original.device if present is None else present.device
            module._buffers[f"{prefix}inv_freq"] = original.to(device)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
