"""Inner products of per-prompt gradients, from their factors: ⟨∂z_i(x_a)/∂W, ∂z_j(x_b)/∂W⟩.

A matrix has three orders of contraction, and the cheapest by operation count is taken. In
multiply-adds for n prompts of T positions, k values each, and a matrix from I to O:

| order    | contracts                                       | multiply-adds             |
|----------|-------------------------------------------------|---------------------------|
| ghost    | (a·a′)(g·g′), summed over both positions        | n²T²I + n²k²T²O           |
| mixed    | a·a′ into g′, then with g: the k values share a | n²T²I + n²kT²O + n²k²TO   |
| explicit | g⊗a, the gradient itself, some rows at a time   | nkTIO + n²k²IO            |

Half of each where a tile meets itself, by symmetry.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .factors import Direct, Factor, Lookup, Outer
from .threads import scratch, side_by_side

Block = Float64[Tensor, "n k m h"]
Known = dict[tuple[object, ...], Tensor]
FLOATS_AT_A_TIME = {"cpu": 2**21, "cuda": 2**27}  # of an intermediate: what caches hold
_ENTRIES_AT_A_TIME = 512
_LONGEST_SUM = 2**14
_PROMPTS_AT_A_TIME = 8


@dataclass(frozen=True)
class Product:
    """A product in pieces that may be done in any order, side by side with those of others.

    Attributes:
        result: what it is once they are done.
        device: where.
        pieces: the work.
    """

    result: Callable[[], Block]
    device: torch.device
    pieces: tuple[Callable[[], None], ...] = ()


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
        known: activations' inner products by the tensors they are of: modules share inputs.

    Raises:
        TypeError: if the factors are of kinds that no parameter has together.
    """
    if isinstance(p, Outer) and isinstance(q, Outer):
        p, q = _same_columns(p, q)
        return _ORDERS[cheapest(p, q)](p, q, known)
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


def _same_columns(p: Outer, q: Outer) -> tuple[Outer, Outer]:
    """Return both with the same entries of the output: what one leaves out is zero in it."""
    if p.columns is not None and q.columns is None:
        q = replace(q, g=q.g[..., p.columns], columns=p.columns)
    if q.columns is not None and p.columns is None:
        p = replace(p, g=p.g[..., q.columns], columns=q.columns)
    return p, q


def multiply_adds(p: Outer, q: Outer) -> dict[str, float]:
    """Return the operations that each order takes."""
    (n, k, _, o), (m, h), width = p.g.shape, q.g.shape[:2], p.a.shape[2]
    rows, columns = sum(p.lengths), sum(q.lengths)
    half = 0.5 if p is q else 1.0
    alike = rows * columns * width
    gradients = (rows * k + (0 if p is q else columns * h)) * width * o
    return {
        "ghost": half * (alike + rows * columns * k * h * o),
        "mixed": half * (alike + rows * columns * h * o + rows * m * k * h * o),
        "explicit": gradients + half * n * k * m * h * width * o,
    }


def cheapest(p: Outer, q: Outer) -> str:
    """Return the order of fewest operations."""
    counts = multiply_adds(p, q)
    return min(counts, key=lambda order: counts[order])


def _room(like: Tensor) -> int:
    """Return how many floats an intermediate should have at most."""
    return FLOATS_AT_A_TIME.get(like.device.type, FLOATS_AT_A_TIME["cpu"])


def _activations(p: Outer, q: Outer, known: Known) -> Float[Tensor, "n m t s"]:
    """Return a_t·a′_s of every two prompts, computed once for operations of the same inputs."""
    key = (p.a.data_ptr(), p.a.shape, p.a.stride(), q.a.data_ptr(), q.a.shape, q.a.stride())
    if key not in known:
        known[key] = _alike(p.a) if p is q else torch.einsum("ati,bsi->abts", p.a, q.a)
    return known[key]


def _alike(a: Float[Tensor, "n t i"]) -> Float[Tensor, "n n t t"]:
    """Return a_t·a_s of every two prompts of one tile: half of them computed, the rest mirrored."""
    n, t, _ = a.shape
    near = a.new_empty(n, n, t, t)
    for start in range(0, n, _PROMPTS_AT_A_TIME):
        stop = start + _PROMPTS_AT_A_TIME
        near[start:stop, start:] = torch.einsum("ati,bsi->abts", a[start:stop], a[start:])
        near[stop:, start:stop] = near[start:stop, stop:].permute(1, 0, 3, 2)
    return near


def _ghost(p: Outer, q: Outer, known: Known) -> Product:
    """Return Σ_ts (a_t·a′_s)(g_it·g′_js), in one piece."""
    near = _activations(p, q, known)
    return Product(lambda: _weighed(p, q, near), p.g.device)


def _weighed(p: Outer, q: Outer, near: Float[Tensor, "n m t s"]) -> Block:
    """Return Σ_ts near_ts (g_it·g′_js), some entries of the output at a time.

    Those sums meet in float64: in float32 one sum over a vocabulary of 150,000 is off by 1e-3.
    """
    (n, k, t, _), (m, h, u, _) = p.g.shape, q.g.shape
    out = p.g.new_zeros((n, k, m, h), dtype=torch.float64)
    step = max(1, _room(p.g) // (n * k * t * h * u))
    for left, right in zip(*(f.g.split(_ENTRIES_AT_A_TIME, 3) for f in (p, q)), strict=True):
        for b in range(0, m, step):
            some = slice(b, b + step)
            gradients = torch.einsum("aito,bjso->aitbjs", left, right[some])
            out[:, :, some] += torch.einsum("aitbjs,abts->aibj", gradients, near[:, some])
    return out


def _mixed(p: Outer, q: Outer, known: Known) -> Product:
    """Return Σ_t g_it · (Σ_s (a_t·a′_s) g′_js), some observed prompts a piece.

    Some entries of the output at a time.
    """
    near = _activations(p, q, known)
    (n, k, _, o), (m, h, u, _) = p.g.shape, q.g.shape
    out = torch.zeros((n, m, k, h), dtype=torch.float64, device=p.g.device)
    width = -(-o // -(-o // _ENTRIES_AT_A_TIME))
    one = h * max(p.lengths) * width  # what carrying one updated prompt to one observed one takes
    down = _even(min(m, _room(p.g) // (2 * one)))
    up = max(1, min(n, _room(p.g) // (down * one)))

    def observe(a: int) -> None:
        some = slice(a, min(a + up, n))
        c, t = some.stop - a, max(p.lengths[some])
        mix = near[some, :, :t].transpose(0, 1).reshape(m, 1, c * t, u)
        room = scratch(down * up * one, p.g)
        for entries in (slice(e, e + width) for e in range(0, o, width)):
            mine = p.g[some, :, :t, entries].flatten(2)
            for b in range(a if p is q else 0, m, down):
                these = slice(b, min(b + down, m))
                s = max(q.lengths[these])
                right = q.g[these, :, :s, entries]
                carried = _carried(mix[these, :, :, :s], right, room).view(-1, c, mine.shape[2])
                found = torch.bmm(mine, carried.permute(1, 2, 0))
                out[some, these] += found.view(c, k, -1, h).transpose(1, 2)

    def result() -> Block:
        whole = out.permute(0, 2, 1, 3)
        return _mirrored(whole) if p is q else whole

    return Product(result, p.g.device, tuple(partial(observe, a) for a in range(0, n, up)))


def _carried(
    mix: Float[Tensor, "m 1 rows seq"], g: Float[Tensor, "m h seq out"], room: Float[Tensor, " _"]
) -> Float[Tensor, "mh rows out"]:
    """Return each prompt's gradients carried to the positions of others, written into `room`."""
    (d, h, s, o), rows = g.shape, mix.shape[2]
    carried = room[: d * h * rows * o].view(d * h, rows, o)
    spread = mix.expand(d, h, rows, s).reshape(d * h, rows, s)
    return torch.bmm(spread, g.flatten(0, 1), out=carried)


def _even(count: int) -> int:
    """Return about as many, in fours where there are: what processors multiply by."""
    return count // 4 * 4 if count >= 4 else max(1, count)


def _explicit(p: Outer, q: Outer, known: Known) -> Product:
    """Return the products of the gradients themselves, in one piece."""
    return Product(lambda: _formed(p, q), p.g.device)


def _formed(p: Outer, q: Outer) -> Block:
    """Return the products of the gradients themselves, some rows of the matrix at a time."""
    (n, k, _, o), (m, h, _, _), width = p.g.shape, q.g.shape, p.a.shape[2]
    out = p.g.new_zeros((n, k, m, h), dtype=torch.float64)
    step = max(1, 8 * _room(p.g) // (max(n * k, m * h) * width))
    for row in range(0, o, step):
        some = slice(row, row + step)
        left = torch.einsum("aito,atw->aiow", p.g[..., some], p.a)
        right = left if p is q else torch.einsum("bjto,btw->bjow", q.g[..., some], q.a)
        out += torch.einsum("aiow,bjow->aibj", left, right)
    return out


def _mirrored(upper: Block) -> Block:
    """Return a kernel of which the blocks above the diagonal were computed."""
    rows, columns = torch.tril_indices(len(upper), len(upper), -1)
    upper[rows, :, columns] = upper[columns, :, rows].transpose(1, 2)
    return upper


_ORDERS = {"ghost": _ghost, "mixed": _mixed, "explicit": _explicit}


def _equal_tokens(p: Lookup, q: Lookup) -> Block:
    """Return Σ_ts [token t = token s] g_it·g′_js."""
    (n, k, _, width), (m, h, _, _) = p.g.shape, q.g.shape
    rows, tokens, left = _by_token(p)
    columns, others, right = _by_token(q)
    equal = (tokens[:, None] == others).nonzero()
    out = p.g.new_zeros((n * m, k, h), dtype=torch.float64)
    for some in equal.split(max(1, _room(p.g) // (max(k, h) * width))):
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
