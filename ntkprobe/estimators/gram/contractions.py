"""Inner products of matrices' gradients, which are sums of outer products, in three orders.

The order with the fewest multiply-adds is taken. For n prompts of T positions, k values each, and a
matrix from I to O:

| order    | contracts                                           | multiply-adds             |
|----------|-----------------------------------------------------|---------------------------|
| ghost    | (a·a′)(g·g′), summed over both positions            | n²T²I + n²k²T²O           |
| mixed    | a·a′ with g′, then with g: shared by the k values   | n²T²I + n²kT²O + n²k²TO   |
| explicit | g⊗a, the gradient itself, some rows at a time       | nkTIO + n²k²IO            |

A micro-batch with itself takes half of these, by symmetry.
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
Cache = dict[tuple[object, ...], Any]
"""Intermediate results that operations on the same inputs share, by the tensors they are of."""
FLOATS_AT_A_TIME = {"cpu": 2**21, "cuda": 2**27}  # of an intermediate result: what caches hold
_COLUMNS_AT_A_TIME = 512
_PROMPTS_AT_A_TIME = 8
# OpenBLAS multiplies matrices up to these sizes without copying them first.
SMALL_MULTIPLY_ADDS, SMALL_OUTPUT, SMALL_COLUMNS = 10**6, 1200, 384


@dataclass(frozen=True)
class LazyProduct:
    """An inner product in pieces that may be computed in any order, in parallel with others'.

    Attributes:
        result: returns the product, once every piece has run.
        device: where it is computed.
        pieces: the work.
    """

    result: Callable[[], Block]
    device: torch.device
    pieces: tuple[Callable[[], None], ...] = ()


def match_columns(p: Outer, q: Outer) -> tuple[Outer, Outer]:
    """Return both factors with the same output entries: what one leaves out is zero in it."""
    if p.columns is not None and q.columns is None:
        q = replace(q, g=q.g[..., p.columns], columns=p.columns)
    if q.columns is not None and p.columns is None:
        p = replace(p, g=p.g[..., q.columns], columns=q.columns)
    return p, q


def multiply_adds(p: Outer, q: Outer) -> dict[str, float]:
    """Return the number of multiply-adds of each order."""
    (n, k, _, o), (m, h), width = p.g.shape, q.g.shape[:2], p.a.shape[2]
    rows, columns = sum(p.lengths), sum(q.lengths)
    half = 0.5 if p is q else 1.0
    gram = rows * columns * width
    gradients = (rows * k + (0 if p is q else columns * h)) * width * o
    return {
        "ghost": half * (gram + rows * columns * k * h * o),
        "mixed": half * (gram + rows * columns * h * o + rows * m * k * h * o),
        "explicit": gradients + half * n * k * m * h * width * o,
    }


def cheapest(p: Outer, q: Outer) -> str:
    """Return the order with the fewest multiply-adds."""
    counts = multiply_adds(p, q)
    return min(counts, key=lambda order: counts[order])


def max_floats(like: Tensor) -> int:
    """Return how many floats an intermediate result on a tensor's device should have at most."""
    return FLOATS_AT_A_TIME.get(like.device.type, FLOATS_AT_A_TIME["cpu"])


def contract(p: Outer, q: Outer, cache: Cache) -> LazyProduct:
    """Return the inner products of two matrices' gradients in the cheapest order, not yet computed.

    Args:
        p: the factor of the observed prompts, the rows.
        q: that of the updated prompts, the columns.
        cache: intermediate results so far; new ones are added.
    """
    if not (max(p.lengths) and max(q.lengths)):  # no row of the micro-batch reached this expert
        (n, k), (m, h) = p.g.shape[:2], q.g.shape[:2]
        return LazyProduct(lambda: p.g.new_zeros((n, k, m, h), dtype=torch.float64), p.g.device)
    return _ORDERS[cheapest(p, q)](p, q, cache)


def _ghost(p: Outer, q: Outer, cache: Cache) -> LazyProduct:
    """Return Σ_ts (a_t·a′_s)(g_it·g′_js), in one piece."""
    activation_gram = _activation_gram(p, q, cache)
    return LazyProduct(lambda: _weighted_gradient_products(p, q, activation_gram), p.g.device)


def _weighted_gradient_products(
    p: Outer, q: Outer, activation_gram: Float[Tensor, "n m t s"]
) -> Block:
    """Return Σ_ts activation_gram_ts (g_it·g′_js), some output entries at a time.

    The sums over those entries are added in float64: in float32 a single sum over a vocabulary of
    150,000 has an error of 1e-3.
    """
    (n, k, t, _), (m, h, u, _) = p.g.shape, q.g.shape
    out = p.g.new_zeros((n, k, m, h), dtype=torch.float64)
    step = max(1, max_floats(p.g) // max(1, n * k * t * h * u))
    for left, right in zip(*(f.g.split(_COLUMNS_AT_A_TIME, 3) for f in (p, q)), strict=True):
        for b in range(0, m, step):
            some = slice(b, b + step)
            gradients = torch.einsum("aito,bjso->aitbjs", left, right[some])
            out[:, :, some] += torch.einsum(
                "aitbjs,abts->aibj", gradients, activation_gram[:, some]
            )
    return out


def _mixed(p: Outer, q: Outer, cache: Cache) -> LazyProduct:
    """Return Σ_t g_it · (Σ_s (a_t·a′_s) g′_js), in pieces of some observed prompts each."""
    activation_gram = _activation_gram(p, q, cache)
    n, m = len(p.g), len(q.g)
    out = torch.zeros((n, m, p.g.shape[1], q.g.shape[1]), dtype=torch.float64, device=p.g.device)
    width, up, down = _chunk_sizes(p, q)

    def observe(start: int) -> None:
        some = slice(start, min(start + up, n))
        t = max(p.lengths[some])
        mix = (
            activation_gram[some, :, :t].transpose(0, 1).reshape(m, 1, -1, activation_gram.shape[3])
        )
        for columns in (slice(c, c + width) for c in range(0, p.g.shape[3], width)):
            left = p.g[some, :, :t, columns].transpose(1, 2)
            for first in range(start if p is q else 0, m, down):
                these = slice(first, min(first + down, m))
                right = q.g[these, :, : max(q.lengths[these]), columns]
                weights = mix[these, ..., : right.shape[2]]
                out[some, these] += _transport_and_contract(left, weights, right)

    def result() -> Block:
        whole = out.permute(0, 2, 1, 3)
        return _fill_lower_triangle(whole) if p is q else whole

    return LazyProduct(result, p.g.device, tuple(partial(observe, a) for a in range(0, n, up)))


def _transport_and_contract(
    left: Float[Tensor, "c t k w"],
    weights: Float[Tensor, "d 1 ct s"],
    right: Float[Tensor, "d h s w"],
) -> Float64[Tensor, "c d k h"]:
    """Return `left` times `right`, whose positions `weights` maps to those of `left`."""
    (c, t, k, w), (d, h) = left.shape, right.shape[:2]
    transported = scratch(d * h * c * t * w, left).view(d, h, c * t, w)
    multiply(weights, right, transported)
    if in_place(left):  # position by position: small matrices
        by_position = multiply(left, transported.view(d * h, c, t, w).permute(1, 2, 3, 0))
        found = by_position.sum(1, dtype=torch.float64)
    else:
        flat = left.transpose(1, 2).flatten(2)
        found = torch.bmm(flat, transported.view(d * h, c, t * w).permute(1, 2, 0)).double()
    return found.view(c, k, d, h).transpose(1, 2)


def _chunk_sizes(p: Outer, q: Outer) -> tuple[int, int, int]:
    """Return how many output entries, observed and updated prompts the mixed order takes at a time.

    Chosen so that transported gradients stay in the caches for the next product and, where small
    matrices are multiplied in place, so that each is small enough for that.
    """
    (n, k, _, o), (m, h, _, _), t, s = p.g.shape, q.g.shape, max(p.lengths), max(q.lengths)
    small = in_place(p.g)
    width = -(-o // -(-o // (SMALL_COLUMNS if small else _COLUMNS_AT_A_TIME)))
    transported = h * t * width  # floats, of one updated prompt for one observed prompt
    most = max_floats(p.g) // max(1, transported) // (2 if small else 1)  # half for the inputs
    limits = (SMALL_MULTIPLY_ADDS // max(1, t * s * width), SMALL_OUTPUT // (k * h))
    up = max(1, min(n, int(most**0.5), limits[0] if small else n))
    down = max(1, min(m, most // up, limits[1] if small else m))
    return width, up, down


def _explicit(p: Outer, q: Outer, cache: Cache) -> LazyProduct:
    """Return the inner products of the gradients themselves, in one piece."""
    return LazyProduct(lambda: _explicit_products(p, q), p.g.device)


def _explicit_products(p: Outer, q: Outer) -> Block:
    """Return the inner products of the gradients themselves, some rows of the matrix at a time."""
    (n, k, _, o), (m, h, _, _), width = p.g.shape, q.g.shape, p.a.shape[2]
    out = p.g.new_zeros((n, k, m, h), dtype=torch.float64)
    step = max(1, 8 * max_floats(p.g) // (max(n * k, m * h) * width))
    for row in range(0, o, step):
        some = slice(row, row + step)
        left = torch.einsum("aito,atw->aiow", p.g[..., some], p.a)
        right = left if p is q else torch.einsum("bjto,btw->bjow", q.g[..., some], q.a)
        out += torch.einsum("aiow,bjow->aibj", left, right)
    return out


def _activation_gram(p: Outer, q: Outer, cache: Cache) -> Float[Tensor, "n m t s"]:
    """Return a_t·a′_s of every two prompts, computed once for operations on the same inputs."""
    key = (p.a.data_ptr(), p.a.shape, p.a.stride(), q.a.data_ptr(), q.a.shape, q.a.stride())
    if key not in cache:
        cache[key] = _self_gram(p.a) if p is q else torch.einsum("ati,bsi->abts", p.a, q.a)
    activation_gram: Tensor = cache[key]
    return activation_gram


def _self_gram(a: Float[Tensor, "n t i"]) -> Float[Tensor, "n n t t"]:
    """Return a_t·a_s of every two prompts of one micro-batch, half of it by symmetry."""
    n, t, _ = a.shape
    gram = a.new_empty(n, n, t, t)
    for start in range(0, n, _PROMPTS_AT_A_TIME):
        stop = start + _PROMPTS_AT_A_TIME
        gram[start:stop, start:] = torch.einsum("ati,bsi->abts", a[start:stop], a[start:])
        gram[stop:, start:stop] = gram[start:stop, stop:].permute(1, 0, 3, 2)
    return gram


def _fill_lower_triangle(kernel: Block) -> Block:
    """Return a kernel whose blocks below the diagonal are filled, in place, from those above."""
    rows, columns = torch.tril_indices(len(kernel), len(kernel), -1)
    kernel[rows, :, columns] = kernel[columns, :, rows].transpose(1, 2)
    return kernel


_ORDERS = {"ghost": _ghost, "mixed": _mixed, "explicit": _explicit}
