"""Inner products of per-prompt gradients, from their factors: ⟨∂z_i(x_a)/∂W, ∂z_j(x_b)/∂W⟩."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .factors import Direct, Factor, Lookup, Outer
from .orders import Block, Known, Product, room
from .prefixes import contracted
from .threads import side_by_side

_LONGEST_SUM = 2**14


def product(p: Factor, q: Factor) -> Block:
    """Return the inner products of two factors of one parameter, rows from `p`."""
    return finished([begun(p, q, {})])[0]


def finished(products: Iterable[Product]) -> list[Block]:
    """Return what products give, the pieces of all of them done side by side."""
    begun = list(products)
    for device in {one.device for one in begun}:
        side_by_side(
            [piece for one in begun if one.device == device for piece in one.pieces], device
        )
    return [one.result() for one in begun]


def begun(p: Factor, q: Factor, known: Known) -> Product:
    """Return the inner products of two factors of one parameter, yet to be finished.

    Args:
        p: the factor of the observed prompts, the rows.
        q: that of the updated ones.
        known: what modules of the same inputs share, by the tensors that those are.

    Raises:
        TypeError: if the factors are of kinds that no parameter has together.
    """
    if isinstance(p, Outer) and isinstance(q, Outer):
        return contracted(p, q, known)
    if isinstance(p, Direct) and isinstance(q, Direct):
        return Product(lambda: _plain(p, q), p.v.device)
    if isinstance(p, Lookup) and isinstance(q, Lookup):
        return Product(lambda: _equal_tokens(p, q), p.g.device)
    if isinstance(p, Outer) and isinstance(q, Lookup):
        return Product(lambda: _matrix_and_table(p, q), p.g.device)
    if isinstance(p, Lookup) and isinstance(q, Outer):
        return Product(lambda: _matrix_and_table(q, p).permute(2, 3, 0, 1), p.g.device)
    raise TypeError(f"no product of {type(p).__name__} and {type(q).__name__}")


def _plain(p: Direct, q: Direct) -> Block:
    """Return Σ v v′, some entries at a time: one float32 sum over a large table is off by 1e-3."""
    pairs = zip(*(f.v.split(_LONGEST_SUM, 2) for f in (p, q)), strict=True)
    parts = (torch.einsum("nkp,mlp->nkml", left, right).double() for left, right in pairs)
    return sum(parts, torch.zeros((), dtype=torch.float64))


def _equal_tokens(p: Lookup, q: Lookup) -> Block:
    """Return Σ_ts [token t = token s] g_it·g′_js."""
    (n, k, _, width), (m, h, _, _) = p.g.shape, q.g.shape
    rows, tokens, left = _by_token(p)
    columns, others, right = _by_token(q)
    equal = (tokens[:, None] == others).nonzero()
    out = p.g.new_zeros((n * m, k, h), dtype=torch.float64)
    for some in equal.split(max(1, room(p.g) // (max(k, h) * width))):
        r, c = some.unbind(1)
        found = torch.bmm(left[r], right[c].transpose(1, 2))
        out.index_add_(0, rows[r] * m + columns[c], found.double())
    return out.view(n, m, k, h).transpose(1, 2)


def _by_token(table: Lookup) -> tuple[Tensor, Tensor, Float[Tensor, "rows k width"]]:
    """Return the prompts and tokens that occur together, and what they send to the token's row."""
    n, most = len(table.ids), int(table.ids.max()) + 1
    own = torch.arange(n, device=table.ids.device)[:, None] * most + table.ids
    held, place = own.flatten().unique(return_inverse=True)
    g = table.g.transpose(1, 2).flatten(0, 1)
    return held // most, held % most, g.new_zeros(len(held), *g.shape[1:]).index_add_(0, place, g)


def _matrix_and_table(p: Outer, q: Lookup) -> Block:
    """Return Σ_ts g_it[token s] (a_t·g′_js): one matrix both multiplied by and looked up (tied)."""
    entries = _entries(p, q.ids)
    weights = torch.einsum("atd,bjsd->atbjs", p.a, q.g)
    return torch.einsum("aitbs,atbjs->aibj", entries, weights).double()


def _entries(p: Outer, ids: Int[Tensor, "m seq"]) -> Float[Tensor, "n k t m seq"]:
    """Return the entries of g at given tokens, zero for the columns left out."""
    if p.columns is None:
        return p.g[..., ids]
    place = torch.searchsorted(p.columns, ids).clamp(max=len(p.columns) - 1)
    return p.g[..., place] * (p.columns[place] == ids)
