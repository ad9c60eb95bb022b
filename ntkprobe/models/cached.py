"""Prompts whose keys and values are kept, so that a token is run once, whatever comes behind it.

What all prompts begin with, such as a chat template's system prompt, is run once for all of them.
Behind a prompt several continuations may stand beside each other: a token attends to the columns
that the mask allows, at the position that it has in its text.

Only where a model's numbers do not depend on its batch or its cache (`usable`): not with rotary
embeddings that look at the length of a pass (`batching`), not where a state runs along the text
(Mamba and its like), not under hooks, which may look at a whole text; and not where a trial with
the shortest and the longest prompt against plain passes fails. Other models are run plainly.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from . import batching
from .masks import additive_masks
from .memory import as_out_of_memory
from .whole_texts import hooked, mixes_continuations

Ids = Sequence[int] | Tensor
KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers that keep keys and values alone, and see what a mask allows."""

TRIED_BEHIND = 16
"""Tokens behind a prompt in the trial, at most."""

BESIDE = 128
"""Tokens of other continuations in the trial: what counts columns shows by as many."""

_LOG = logging.getLogger(__name__)
_TRIED: WeakKeyDictionary[nn.Module, dict[batching.Computation, tuple[bool, int, int]]] = (
    WeakKeyDictionary()
)


@dataclass
class CachedPrompts:
    """A batch of prompts that was run, and what may be run behind them.

    Attributes:
        model: the model.
        logits: after each prompt, `[batch, vocab]`.
        lengths: of the prompts, in tokens.
        cache: keys and values of all columns.
        positions: of the columns in their texts, `[batch, columns]`.
        real: which columns are no padding.
    """

    model: Any
    logits: Float[Tensor, "batch vocab"]
    lengths: list[int]
    cache: DynamicCache
    positions: Int[Tensor, "batch columns"]
    real: Bool[Tensor, "batch columns"]

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return self.real.shape[1]

    def fork(self) -> "CachedPrompts":
        """Return the same prompts, behind which other tokens may be run."""
        pairs = _kept(self.cache)
        return CachedPrompts(
            self.model, self.logits, self.lengths, _cache(pairs), self.positions, self.real
        )

    def select(self, rows: Sequence[int]) -> None:
        """Keep some of the prompts only, in the order given."""
        chosen = list(rows)
        self.cache = _cache([(keys[chosen], values[chosen]) for keys, values in _kept(self.cache)])
        self.positions, self.real = self.positions[chosen], self.real[chosen]
        self.logits = self.logits[chosen]
        self.lengths = [self.lengths[row] for row in rows]

    def run(
        self,
        tokens: Int[Tensor, "batch new"],
        positions: Int[Tensor, "batch new"],
        seen: Bool[Tensor, "batch new columns"],
        real: Bool[Tensor, "batch new"] | None = None,
    ) -> Float[Tensor, "batch new vocab"]:
        """Run tokens behind the prompts, and keep them as further columns.

        Args:
            tokens: their ids.
            positions: in their texts.
            seen: which columns each attends to, the new ones included; itself in any case.
            real: which of them are no padding; None for all.

        Returns:
            The logits after each.
        """
        device, new = self.real.device, tokens.shape[1]
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
        self.positions = torch.cat([self.positions, positions.to(device)], 1)
        self.real = torch.cat([self.real, real.to(device)], 1)
        itself = torch.arange(new)[:, None] + self.columns - new == torch.arange(self.columns)
        logits = _pass(
            self.model,
            tokens.to(device),
            self.positions[:, -new:],
            (seen | itself).to(device),
            self.positions,
            self.cache,
            keep=new,
        )
        return logits[:, -new:]

    def append(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
        """Run one more token of each text, behind all there is of it.

        Returns:
            The logits after it.
        """
        positions = self.positions.where(self.real, -1).amax(1, keepdim=True) + 1
        seen = torch.cat([self.real, torch.ones_like(self.real[:, :1])], 1)[:, None]
        return self.run(tokens[:, None], positions, seen)[:, 0]


@dataclass(frozen=True)
class Beginning:
    """What all of some prompts begin with, run once.

    Attributes:
        length: in tokens; less than the shortest prompt.
        kept: keys and values by layer, of one row each.
    """

    length: int
    kept: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, model: Any, prompts: Sequence[Ids]) -> "Beginning":
        """Return the beginning that prompts share, run through a model.

        Args:
            model: a model that is `usable`.
            prompts: token ids.
        """
        ids = shared_ids(prompts)
        if not ids:
            return cls(0, [])
        device = model.get_input_embeddings().weight.device
        tokens = torch.tensor([ids], device=device)
        positions = torch.arange(len(ids), device=device)[None]
        cache = DynamicCache()
        with torch.no_grad():
            _pass(model, tokens, positions, _causal(positions), positions, cache, keep=1)
        return cls(len(ids), _kept(cache))


def shared_ids(prompts: Sequence[Ids]) -> list[int]:
    """Return the tokens that all prompts begin with; every prompt has at least one more."""
    if len(prompts) < 2:
        return []
    rows = [list(map(int, ids)) for ids in (min(prompts, key=len), *prompts)]
    most = len(rows[0]) - 1
    same = (len({row[place] for row in rows}) == 1 for place in range(most))
    length = next((place for place, equal in enumerate(same) if not equal), most)
    return rows[0][:length]


@torch.no_grad()
def read(model: Any, prompts: Sequence[Ids], beginning: Beginning) -> CachedPrompts:
    """Return prompts that were run in one pass.

    Args:
        model: a model that is `usable`.
        prompts: token ids, of any lengths, all with the beginning.
        beginning: what they begin with.
    """
    device = model.get_input_embeddings().weight.device
    own = [list(map(int, ids))[beginning.length :] for ids in prompts]
    longest = max(map(len, own))
    tokens = torch.tensor([[0] * (longest - len(ids)) + ids for ids in own], device=device)
    real = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in own]).bool()
    places = (real.cumsum(1) - 1).clamp(min=0) + beginning.length
    before = torch.arange(beginning.length).expand(len(own), -1)
    positions = torch.cat([before, places], 1).to(device)
    known = torch.cat([torch.ones_like(before, dtype=torch.bool), real], 1).to(device)
    seen = known[:, None] & _order(longest, beginning.length).to(device)
    cache = _cache([(_rows(k, len(own)), _rows(v, len(own))) for k, v in beginning.kept])
    logits = _pass(model, tokens, positions[:, beginning.length :], seen, positions, cache, keep=1)
    return CachedPrompts(model, logits[:, -1], list(map(len, prompts)), cache, positions, known)


def batches(
    model: Any, prompts: Sequence[Ids], batch_size: int
) -> Iterator[tuple[list[int], CachedPrompts]]:
    """Yield row numbers and their prompts, run, the longest first; a beginning is run once.

    Args:
        model: a model that is `usable`.
        prompts: token ids.
        batch_size: prompts at a time.
    """
    beginning = Beginning.of(model, prompts)
    for rows in batching.length_batches(prompts, batch_size):
        yield rows, read(model, [prompts[row] for row in rows], beginning)


def usable(model: nn.Module, prompts: Sequence[Ids], new_tokens: int) -> bool:
    """Return whether a model's numbers are the same with kept keys and values as in plain passes.

    Args:
        model: a causal language model in evaluation mode.
        prompts: what is to be run; the shortest and the longest are tried.
        new_tokens: how many tokens are to come behind a prompt.

    Returns:
        False also where it is not known how to try.

    Raises:
        OutOfMemoryError: it is the batch that is too large, not the model that is odd.
    """
    if _excluded(model):
        return False
    longest, behind = max(map(len, prompts)), max(1, min(new_tokens, TRIED_BEHIND))
    dtype = next(model.parameters()).dtype
    computation = batching.computation(model)
    known = _TRIED.get(model, {}).get(computation)
    if known is not None and (not known[0] or (longest <= known[1] and behind <= known[2])):
        return known[0]
    try:
        with as_out_of_memory():
            error = trial_error(model, prompts, behind)
    except torch.OutOfMemoryError:
        raise
    except Exception as why:  # whatever a model makes of a cache or a mask that it does not know
        _LOG.info("keys and values are not kept: %s: %s", type(why).__name__, why)
        error = torch.inf
    holds = error <= batching.tolerance(dtype)
    _TRIED.setdefault(model, {})[computation] = (holds, longest, behind)
    if not holds:
        _LOG.info("keys and values are not kept: logits would be off by %.2g", error)
    return holds


def _excluded(model: nn.Module) -> bool:
    """Return whether a model is none of those whose passes may be split, by rule."""
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    kinds = set(
        getattr(config, "layer_types", None)
        or getattr(config, "attention_layers", None)  # GPT-Neo's "local" ones count columns
        or ["full_attention"]
    )
    apart = any(batching.padding_known(model, side) is False for side in ("left", "right"))
    by_rule = not kinds <= KINDS or mixes_continuations(model)
    return apart or bool(batching.LengthRule.of(model)) or bool(by_rule) or hooked(model)


@torch.no_grad()
def trial_error(model: Any, prompts: Sequence[Ids], behind: int) -> float:
    """Return by how much of their spread logits are off, behind the longest and shortest prompt.

    Args:
        model: a causal language model in evaluation mode.
        prompts: token ids.
        behind: how many tokens are run behind a prompt.

    Returns:
        The larger error of the two, infinite where a logit is NaN.

    `BESIDE` tokens of other continuations stand before the one that is compared, whose last token
    is run after the others.
    """
    pair = [max(prompts, key=len), min(prompts, key=len)]
    rows = [list(map(int, ids)) for ids in pair]
    chain = (rows[0] * (behind // len(rows[0]) + 1))[:behind]
    repeated = rows[0] * (BESIDE // len(rows[0]) + 1)
    other = [(word + 1) % _words(model) for word in repeated[:BESIDE]]
    found = read(model, pair, Beginning.of(model, prompts))
    got = [found.logits[:, None]]
    depths = [*(min(each, behind - 1) for each in range(BESIDE)), *range(behind)]
    places = torch.tensor([[len(row) + depth for depth in depths] for row in rows])
    real, new = found.real.cpu(), BESIDE + behind
    apart = torch.ones(new, new, dtype=torch.bool).tril()
    apart[BESIDE:, :BESIDE] = False
    for part in (slice(0, new - 1), slice(new - 1, new)):
        seen = torch.cat([real[:, None].expand(-1, new, -1), apart.expand(2, -1, -1)], 2)
        seen = seen[:, part, : real.shape[1] + (part.stop or 0)]
        tokens = torch.tensor([*other, *chain])[part].expand(2, -1)
        got.append(found.run(tokens, places[:, part], seen.to(found.real.device)))
    last = [0, *range(1 + BESIDE, 1 + BESIDE + behind)]
    behind_prompts = torch.cat(got, 1)[:, last].double()
    return max(
        _error(model, [*row, *chain], logits)
        for row, logits in zip(rows, behind_prompts, strict=True)
    )


def _error(model: Any, text: list[int], found: Float[Tensor, "places vocab"]) -> float:
    """Return how far logits after a text's last tokens are from a plain pass's."""
    device = model.get_input_embeddings().weight.device
    keep = {"use_cache": False, "logits_to_keep": len(found)}
    plain = model(torch.tensor([text], device=device), **keep).logits[0, -len(found) :].double()
    spread = (plain - plain.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-12)
    error = float(((found - plain).norm(dim=-1) / spread).max())
    return error if error == error else torch.inf


def _words(model: Any) -> int:
    return model.get_input_embeddings().weight.shape[0]


def _pass(
    model: Any,
    tokens: Int[Tensor, "batch new"],
    positions: Int[Tensor, "batch new"],
    seen: Bool[Tensor, "batch new columns"],
    of_columns: Int[Tensor, "batch columns"],
    cache: DynamicCache,
    keep: int,
) -> Float[Tensor, "batch keep vocab"]:
    """Run tokens beside what a cache holds.

    Returns:
        The logits after the last `keep` of them.

    Raises:
        ValueError: if the model keeps something else than a column for each token.
    """
    itself = _order(tokens.shape[1], seen.shape[2] - tokens.shape[1], alone=True)
    logits = model(
        input_ids=tokens,
        attention_mask=additive_masks(model, seen | itself.to(seen.device), positions, of_columns),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
    ).logits
    if any(keys.shape[-2] != seen.shape[2] for keys, _ in _kept(cache)) or not _kept(cache):
        raise ValueError("the model keeps something else than keys and values of every token")
    return logits


def _order(new: int, before: int, *, alone: bool = False) -> Bool[Tensor, "new columns"]:
    """Return whether columns stand at or before each of the last `new` ones; or are it."""
    rows, columns = torch.arange(new)[:, None] + before, torch.arange(before + new)
    return columns == rows if alone else columns <= rows


def _causal(positions: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq seq"]:
    return positions[:, None, :] <= positions[:, :, None]


def _kept(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values by layer."""
    layers: list[Any] = list(cache.layers)
    return [(layer.keys, layer.values) for layer in layers]


def _cache(pairs: Sequence[tuple[Tensor, Tensor]]) -> DynamicCache:
    """Return a cache of keys and values, whose layers keep all of them."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return cache


def _rows(kept: Tensor, batch: int) -> Tensor:
    return kept.expand(batch, *kept.shape[1:])
