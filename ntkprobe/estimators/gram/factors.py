"""Per-prompt gradients of a parameter as factors: tensors whose product is the gradient.

In all of them `g` is the gradient with respect to the output of the operation that uses the
parameter, for n prompts and k values each; it is zero at padding, past a prompt's own `lengths`.

A `RowLayout` says which rows of an operation's tensors belong to which prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """Gradients of a matrix that multiplies activations: ∂z_i/∂W = Σ_t g_it ⊗ a_t.

    `columns` are the output entries that `g` holds, where it leaves out some that are always zero.
    """

    a: Float[Tensor, "n seq width"]
    g: Float[Tensor, "n k seq out"]
    lengths: tuple[int, ...]
    columns: Int[Tensor, " out"] | None = None


@dataclass(frozen=True)
class Lookup:
    """Gradients of an embedding table: g_it is added to row `ids[t]` of ∂z_i/∂W."""

    ids: Int[Tensor, "n seq"]
    g: Float[Tensor, "n k seq width"]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Direct:
    """Gradients themselves, flattened: of biases, of norms, and of parameters without a rule."""

    v: Float[Tensor, "n k size"]


Factor = Outer | Lookup | Direct


def sum_factors(factors: Sequence[Factor]) -> list[Factor]:
    """Return the factors of all uses of one parameter as at most one of each kind.

    The uses of a matrix are concatenated along positions: inner products then include the cross
    terms between uses.
    """
    outers = [f for f in factors if isinstance(f, Outer)]
    lookups = [f for f in factors if isinstance(f, Lookup)]
    directs = [f for f in factors if isinstance(f, Direct)]
    found: list[Factor] = [*outers[:1], *lookups[:1]]
    if len(outers) > 1:
        a, g = torch.cat([f.a for f in outers], 1), torch.cat([f.g for f in outers], 2)
        found[0] = Outer(a, g, _full_lengths(g), outers[0].columns)
    if len(lookups) > 1:
        ids, g = torch.cat([f.ids for f in lookups], 1), torch.cat([f.g for f in lookups], 2)
        found[-1] = Lookup(ids, g, _full_lengths(g))
    return [*found, Direct(torch.stack([f.v for f in directs]).sum(0))] if directs else found


def _full_lengths(g: Float[Tensor, "n k seq out"]) -> tuple[int, ...]:
    return (g.shape[2],) * g.shape[0]


def restrict_columns(factor: Factor, columns: Int[Tensor, " some"]) -> Factor:
    """Return a factor with only these output entries; unchanged if any other is not zero."""
    if not isinstance(factor, Outer):
        return factor
    selected = factor.g[..., columns]
    if int(selected.count_nonzero()) != int(factor.g.count_nonzero()):
        return factor
    return replace(factor, g=selected, columns=columns)


def drop_zero_positions(factor: Factor) -> Factor:
    """Return a factor without the positions where every gradient is zero.

    In the last block these are most of them. Unchanged where fewer than half would be dropped.
    """
    if not isinstance(factor, Outer) or factor.g.shape[2] == 1:
        return factor
    nonzero = factor.g.ne(0).any(3).any(1)
    counts = nonzero.sum(1)
    longest = max(int(counts.max()), 1)
    if 2 * longest > nonzero.shape[1]:
        return factor
    order = nonzero.long().argsort(dim=1, descending=True, stable=True)[:, :longest]
    rows = torch.arange(len(order), device=order.device)[:, None]
    return replace(
        factor,
        a=factor.a[rows, order],
        g=factor.g.transpose(1, 2)[rows, order].transpose(1, 2).contiguous(),
        lengths=tuple(counts.tolist()),
    )


class NoRule(Exception):
    """No gradient rule covers an operation on a parameter."""


def require_rule(condition: bool, what: str) -> None:
    """Do nothing if the condition holds.

    Args:
        condition: whether the operation is covered.
        what: the operation that is not.

    Raises:
        NoRule: naming the operation, if the condition does not hold.
    """
    if not condition:
        raise NoRule(what)


@dataclass(frozen=True)
class PaddedBatch:
    """The rows of n prompts, padded on the right to `seq` positions."""

    lengths: tuple[int, ...]
    seq: int

    def by_prompt(self, x: Shaped[Tensor, "*rows width"]) -> Shaped[Tensor, "n seq width"]:
        """Return the rows by prompt, of a tensor with the prompts first or with rows flattened."""
        n, rows = len(self.lengths), x.shape[0]
        whole = (x.dim() >= 3 and rows == n) or (x.dim() == 2 and rows == n * self.seq)
        require_rule(whole, f"rows {tuple(x.shape)} of {n} prompts of {self.seq} positions")
        return x.reshape(n, -1, x.shape[-1])

    def row_counts(self, x: Shaped[Tensor, "*rows width"]) -> tuple[int, ...]:
        """Return how many of each prompt's rows are not padding."""
        rows = self.by_prompt(x).shape[1]
        return self.lengths if rows == self.seq else (rows,) * len(self.lengths)


@dataclass(frozen=True)
class GatheredRows:
    """Rows selected from a flattened batch, as an expert's are.

    Row r belongs to prompt `prompt[r]` and is its `slot[r]`-th selected row.
    """

    prompt: Int[Tensor, " rows"]
    slot: Int[Tensor, " rows"]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, batch: PaddedBatch, index: Int[Tensor, " rows"]) -> "GatheredRows":
        """Return the layout of rows `index` of the flattened batch."""
        prompt = torch.div(index, batch.seq, rounding_mode="floor")
        counts = torch.bincount(prompt, minlength=len(batch.lengths))
        order = prompt.argsort(stable=True)
        starts = (counts.cumsum(0) - counts)[prompt[order]]
        slot = torch.empty_like(index)
        slot[order] = torch.arange(len(index), device=index.device) - starts
        return cls(prompt, slot, tuple(counts.tolist()))

    def by_prompt(self, x: Float[Tensor, "rows width"]) -> Shaped[Tensor, "n seq width"]:
        """Return the rows by prompt, padded with zeros to the largest number of rows."""
        expected = x.dim() == 2 and len(x) == len(self.prompt)
        require_rule(expected, f"rows {tuple(x.shape)} where {len(self.prompt)} were gathered")
        out = x.new_zeros(len(self.lengths), max(self.lengths), x.shape[-1])
        out[self.prompt, self.slot] = x
        return out

    def row_counts(self, x: Float[Tensor, "rows width"]) -> tuple[int, ...]:
        """Return how many rows each prompt has."""
        return self.lengths


RowLayout = PaddedBatch | GatheredRows
