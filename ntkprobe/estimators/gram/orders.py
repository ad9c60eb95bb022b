"""Inner products of matrices' gradients, which are outer products: three orders of contraction.

The cheapest by operation count is taken. In multiply-adds for n prompts of T positions, k values
each, and a matrix from I to O:

| order    | contracts                                       | multiply-adds             |
|----------|-------------------------------------------------|---------------------------|
| ghost    | (a·a′)(g·g′), summed over both positions        | n²T²I + n²k²T²O           |
| mixed    | a·a′ into g′, then with g: the k values share a | n²T²I + n²kT²O + n²k²TO   |
| explicit | g⊗a, the gradient itself, some rows at a time   | nkTIO + n²k²IO            |

Half of each where a tile meets itself, by symmetry.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .factors import Outer
from .threads import in_place, multiply, scratch

Block = Float64[Tensor, "n k m h"]
Known = dict[tuple[object, ...], Any]
FLOATS_AT_A_TIME = {"cpu": 2**21, "cuda": 2**27}  # of an intermediate: what caches hold
_ENTRIES_AT_A_TIME = 512
_PROMPTS_AT_A_TIME = 8
# What OpenBLAS multiplies without copying first: multiply-adds, and numbers in what comes out.
_SMALL, _FLAT, _SMALL_ENTRIES = 10**6, 1200, 384


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


def same_columns(p: Outer, q: Outer) -> tuple[Outer, Outer]:
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


def room(like: Tensor) -> int:
    """Return how many floats an intermediate should have at most."""
    return FLOATS_AT_A_TIME.get(like.device.type, FLOATS_AT_A_TIME["cpu"])


def _activations(p: Outer, q: Outer, known: Known) -> Float[Tensor, "n m t s"]:
    """Return a_t·a′_s of every two prompts, computed once for operations of the same inputs."""
    key = (p.a.data_ptr(), p.a.shape, p.a.stride(), q.a.data_ptr(), q.a.shape, q.a.stride())
    if key not in known:
        known[key] = _alike(p.a) if p is q else torch.einsum("ati,bsi->abts", p.a, q.a)
    near: Tensor = known[key]
    return near


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
    step = max(1, room(p.g) // max(1, n * k * t * h * u))
    for left, right in zip(*(f.g.split(_ENTRIES_AT_A_TIME, 3) for f in (p, q)), strict=True):
        for b in range(0, m, step):
            some = slice(b, b + step)
            gradients = torch.einsum("aito,bjso->aitbjs", left, right[some])
            out[:, :, some] += torch.einsum("aitbjs,abts->aibj", gradients, near[:, some])
    return out


def _mixed(p: Outer, q: Outer, known: Known) -> Product:
    """Return Σ_t g_it · (Σ_s (a_t·a′_s) g′_js), some observed prompts a piece."""
    near = _activations(p, q, known)
    n, m = len(p.g), len(q.g)
    out = torch.zeros((n, m, p.g.shape[1], q.g.shape[1]), dtype=torch.float64, device=p.g.device)
    width, up, down = _sizes(p, q)

    def observe(start: int) -> None:
        some = slice(start, min(start + up, n))
        t = max(p.lengths[some])
        mix = near[some, :, :t].transpose(0, 1).reshape(m, 1, -1, near.shape[3])
        for entries in (slice(e, e + width) for e in range(0, p.g.shape[3], width)):
            mine = p.g[some, :, :t, entries].transpose(1, 2)
            for first in range(start if p is q else 0, m, down):
                these = slice(first, min(first + down, m))
                right = q.g[these, :, : max(q.lengths[these]), entries]
                out[some, these] += _carried_and_met(mine, mix[these, ..., : right.shape[2]], right)

    def result() -> Block:
        whole = out.permute(0, 2, 1, 3)
        return _mirrored(whole) if p is q else whole

    return Product(result, p.g.device, tuple(partial(observe, a) for a in range(0, n, up)))


def _carried_and_met(
    mine: Float[Tensor, "c t k w"], mix: Float[Tensor, "d 1 ct s"], right: Float[Tensor, "d h s w"]
) -> Float64[Tensor, "c d k h"]:
    """Return gradients carried to the positions of others, times the gradients there."""
    (c, t, k, w), (d, h) = mine.shape, right.shape[:2]
    carried = scratch(d * h * c * t * w, mine).view(d, h, c * t, w)
    multiply(mix, right, carried)
    if in_place(mine):  # by position: small
        by_position = multiply(mine, carried.view(d * h, c, t, w).permute(1, 2, 3, 0))
        found = by_position.sum(1, dtype=torch.float64)
    else:
        together = mine.transpose(1, 2).flatten(2)
        found = torch.bmm(together, carried.view(d * h, c, t * w).permute(1, 2, 0)).double()
    return found.view(c, k, d, h).transpose(1, 2)


def _sizes(p: Outer, q: Outer) -> tuple[int, int, int]:
    """Return how many entries, observed and updated prompts the mixed order takes at a time.

    What is carried stays in the caches for what follows; and where small products are multiplied in
    place, each is small enough.
    """
    (n, k, _, o), (m, h, _, _), t, s = p.g.shape, q.g.shape, max(p.lengths), max(q.lengths)
    small = in_place(p.g)
    width = -(-o // -(-o // (_SMALL_ENTRIES if small else _ENTRIES_AT_A_TIME)))
    carried = h * t * width  # of one updated prompt to one observed one
    most = room(p.g) // max(1, carried) // (2 if small else 1)  # the rest is for what it is from
    limits = (_SMALL // max(1, t * s * width), _FLAT // (k * h)) if small else (n, m)
    up = max(1, min(n, int(most**0.5), limits[0]))
    down = max(1, min(m, most // up, limits[1]))
    return width, up, down


def _explicit(p: Outer, q: Outer, known: Known) -> Product:
    """Return the products of the gradients themselves, in one piece."""
    return Product(lambda: _formed(p, q), p.g.device)


def _formed(p: Outer, q: Outer) -> Block:
    """Return the products of the gradients themselves, some rows of the matrix at a time."""
    (n, k, _, o), (m, h, _, _), width = p.g.shape, q.g.shape, p.a.shape[2]
    out = p.g.new_zeros((n, k, m, h), dtype=torch.float64)
    step = max(1, 8 * room(p.g) // (max(n * k, m * h) * width))
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


def contracted(p: Outer, q: Outer, known: Known) -> Product:
    """Return the inner products of two matrices' gradients in the cheapest order, yet to be done.

    Args:
        p: the factor of the observed prompts, the rows.
        q: that of the updated ones.
        known: activations' inner products by the tensors they are of: modules share inputs.
    """
    if not (max(p.lengths) and max(q.lengths)):  # an expert that no row of the tile came to
        (n, k), (m, h) = p.g.shape[:2], q.g.shape[:2]
        return Product(lambda: p.g.new_zeros((n, k, m, h), dtype=torch.float64), p.g.device)
    return _ORDERS[cheapest(p, q)](p, q, known)
