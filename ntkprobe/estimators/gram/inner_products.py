"""Inner products of per-prompt gradients, from their factors: ⟨∂z_i(x_a)/∂W, ∂z_j(x_b)/∂W⟩."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .contractions import Block, Cache, LazyProduct, max_floats
from .factors import Direct, Factor, Lookup, Outer
from .shared_prefixes import contract
from .threads import side_by_side

_LONGEST_SUM = 2**14


def inner_product(p: Factor, q: Factor) -> Block:
    """Return the inner products of two factors of one parameter, with rows from `p`."""
    return evaluate([lazy_product(p, q, {})])[0]


def evaluate(products: Iterable[LazyProduct]) -> list[Block]:
    """Return the results of products, having computed the pieces of all of them in parallel."""
    lazy = list(products)
    for device in {one.device for one in lazy}:
        side_by_side(
            [piece for one in lazy if one.device == device for piece in one.pieces], device
        )
    return [one.result() for one in lazy]


def lazy_product(p: Factor, q: Factor, cache: Cache) -> LazyProduct:
    """Return the inner products of two factors of one parameter, not yet computed.

    Args:
        p: the factor of the observed prompts, the rows.
        q: that of the updated prompts, the columns.
        cache: intermediate results so far; new ones are added.

    Raises:
        TypeError: if no parameter has factors of these two kinds.
    """
    if isinstance(p, Outer) and isinstance(q, Outer):
        return contract(p, q, cache)
    if isinstance(p, Direct) and isinstance(q, Direct):
        return LazyProduct(lambda: _direct_product(p, q), p.v.device)
    if isinstance(p, Lookup) and isinstance(q, Lookup):
        return LazyProduct(lambda: _lookup_product(p, q), p.g.device)
    if isinstance(p, Outer) and isinstance(q, Lookup):
        return LazyProduct(lambda: matrix_lookup_product(p, q), p.g.device)
    if isinstance(p, Lookup) and isinstance(q, Outer):
        return LazyProduct(lambda: matrix_lookup_product(q, p).permute(2, 3, 0, 1), p.g.device)
    raise TypeError(f"no inner product of {type(p).__name__} and {type(q).__name__}")


def _direct_product(p: Direct, q: Direct) -> Block:
    """Return Σ v v′, some entries at a time.

    In float32 a single sum over a large table has an error of 1e-3.
    """
    pairs = zip(*(f.v.split(_LONGEST_SUM, 2) for f in (p, q)), strict=True)
    parts = (torch.einsum("nkp,mlp->nkml", left, right).double() for left, right in pairs)
    return sum(parts, torch.zeros((), dtype=torch.float64))


def _lookup_product(p: Lookup, q: Lookup) -> Block:
    """Return Σ_ts [token t = token s] g_it·g′_js."""
    (n, k, _, width), (m, h, _, _) = p.g.shape, q.g.shape
    rows, tokens, left = _sum_by_token(p)
    columns, others, right = _sum_by_token(q)
    equal = (tokens[:, None] == others).nonzero()
    out = p.g.new_zeros((n * m, k, h), dtype=torch.float64)
    for some in equal.split(max(1, max_floats(p.g) // (max(k, h) * width))):
        r, c = some.unbind(1)
        found = torch.bmm(left[r], right[c].transpose(1, 2))
        out.index_add_(0, rows[r] * m + columns[c], found.double())
    return out.view(n, m, k, h).transpose(1, 2)


def _sum_by_token(table: Lookup) -> tuple[Tensor, Tensor, Float[Tensor, "rows k width"]]:
    """Return each prompt's distinct tokens: prompt, token, and the gradient of the token's row."""
    n, most = len(table.ids), int(table.ids.max()) + 1
    own = torch.arange(n, device=table.ids.device)[:, None] * most + table.ids
    distinct, place = own.flatten().unique(return_inverse=True)
    g = table.g.transpose(1, 2).flatten(0, 1)
    summed = g.new_zeros(len(distinct), *g.shape[1:]).index_add_(0, place, g)
    return distinct // most, distinct % most, summed


def matrix_lookup_product(p: Outer, q: Lookup) -> Block:
    """Return Σ_ts g_it[token s] (a_t·g′_js): of a matrix that is both multiplied and looked up."""
    entries = _gradients_at(p, q.ids)
    weights = torch.einsum("atd,bjsd->atbjs", p.a, q.g)
    return torch.einsum("aitbs,atbjs->aibj", entries, weights).double()


def _gradients_at(p: Outer, ids: Int[Tensor, "m seq"]) -> Float[Tensor, "n k t m seq"]:
    """Return the entries of g at token ids, zero for the columns that g leaves out."""
    if p.columns is None:
        return p.g[..., ids]
    place = torch.searchsorted(p.columns, ids).clamp(max=len(p.columns) - 1)
    return p.g[..., place] * (p.columns[place] == ids)
