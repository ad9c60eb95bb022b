"""Inner products for prompts that begin with the same tokens, as after one chat template.

Where all prompts have the same first r tokens, they have the same activations there. Let q_u be r
orthonormal vectors that span those. Each gradient is then a sum of two terms, and the first term of
any prompt is orthogonal to the second term of any other:

∂z_i/∂W = Σ_t g_it ⊗ a_t = Σ_u (Σ_t (a_t·q_u) g_it) ⊗ q_u + Σ_{t≥r} g_it ⊗ (a_t − Σ_u (a_t·q_u) q_u)

The first term is r vectors per prompt, and its inner products are one product of large matrices.
The second has r fewer positions than the prompt. The shared positions thus cost once per prompt
instead of once per pair.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from . import contractions
from .contractions import Block, Cache, LazyProduct, match_columns, max_floats, multiply_adds
from .factors import Outer
from .threads import multiply, side_by_side

_PROMPTS_AT_A_TIME = 4
_EQUAL = {torch.float32: 1e-5, torch.float64: 1e-13}  # relative: rounding depends on the batch


@dataclass(frozen=True)
class SplitActivations:
    """Activations as coefficients in the basis q_u, and what remains after the shared positions."""

    coefficients: Float[Tensor, "n seq span"]
    remainder: Float[Tensor, "n own width"]


def contract(p: Outer, q: Outer, cache: Cache) -> LazyProduct:
    """Return the inner products of two matrices' gradients, not yet computed.

    A shared prefix is split off where that takes fewer multiply-adds.

    Args:
        p: the factor of the observed prompts, the rows.
        q: that of the updated prompts, the columns.
        cache: intermediate results so far; new ones are added.
    """
    p, q = match_columns(p, q)
    key = ("shared", p.a.data_ptr(), p.a.shape, q.a.data_ptr(), q.a.shape)
    if key not in cache:
        cache[key] = shared_length(p, q)
    r = cache[key]
    if r == 0 or not saves_operations(p, q, r):
        return contractions.contract(p, q, cache)
    if (*key, r) not in cache:
        cache[*key, r] = split_activations(p, q, r)
    left, right = cache[*key, r]
    own = _after_prefix(p, r, left.remainder)
    others = own if p is q else _after_prefix(q, r, right.remainder)
    rest = contractions.contract(own, others, cache)
    return replace(rest, result=lambda: _prefix_products(p, q, left, right) + rest.result())


def shared_length(p: Outer, q: Outer) -> int:
    """Return the number of first positions at which all prompts have the same activations.

    At least one position of every prompt is left out of it.
    """
    most = min(*p.lengths, *q.lengths) - 1
    if most < 1 or p.a.dtype not in _EQUAL:
        return 0
    one = p.a[0, :most]
    allowed = _EQUAL[p.a.dtype] * one.abs().amax(1)
    same = torch.stack([(f.a[:, :most] - one).abs().amax((0, 2)) <= allowed for f in (p, q)])
    return int(same.all(0).long().cumprod(0).sum())


def saves_operations(p: Outer, q: Outer, r: int) -> bool:
    """Return whether splitting at position r takes fewer operations than the cheapest order."""
    n, k, _, o = p.g.shape
    own = _after_prefix(p, r, p.a[:, r:])
    rest = multiply_adds(own, own if p is q else _after_prefix(q, r, q.a[:, r:]))
    each = [p] if p is q else [p, q]
    projected = sum(r * sum(f.lengths) * (2 * f.a.shape[2] + f.g.shape[1] * o) for f in each)
    products = n * k * r * o * q.g.shape[0] * q.g.shape[1]
    return projected + products + min(rest.values()) < min(multiply_adds(p, q).values())


def split_activations(p: Outer, q: Outer, r: int) -> tuple[SplitActivations, SplitActivations]:
    """Return the activations of both factors, split at position r in one basis."""
    basis = torch.linalg.qr(p.a[0, :r].double().T).Q.T.to(p.a)
    left = _split(p.a, r, basis)
    return left, left if p is q else _split(q.a, r, basis)


def _split(
    a: Float[Tensor, "n seq width"], r: int, basis: Float[Tensor, "span width"]
) -> SplitActivations:
    coefficients = a @ basis.T
    return SplitActivations(coefficients, a[:, r:] - coefficients[:, r:] @ basis)


def _after_prefix(factor: Outer, r: int, remainder: Float[Tensor, "n own width"]) -> Outer:
    """Return the factor of the positions after the shared ones, with other activations."""
    lengths = tuple(length - r for length in factor.lengths)
    return replace(factor, a=remainder, g=factor.g[:, :, r:], lengths=lengths)


def _prefix_products(p: Outer, q: Outer, left: SplitActivations, right: SplitActivations) -> Block:
    """Return the inner products of the terms in the basis, some output entries at a time."""
    (n, k, _, o), (m, h, _, _) = p.g.shape, q.g.shape
    out = torch.zeros((n * k, m * h), dtype=torch.float64, device=p.g.device)
    step = max(1, 4 * max_floats(p.g) // (max(n * k, m * h) * left.coefficients.shape[2]))
    for start in range(0, o, step):
        columns = slice(start, start + step)
        rows = _projected_gradients(p.g[..., columns], left)
        out += rows @ (rows if p is q else _projected_gradients(q.g[..., columns], right)).T
    return out.view(n, k, m, h)


def _projected_gradients(
    g: Float[Tensor, "n k seq out"], split: SplitActivations
) -> Float[Tensor, "nk span_out"]:
    """Return Σ_t (a_t·q_u) g_it of every prompt and value, a row for each."""
    n, k, _, o = g.shape
    weights = split.coefficients.transpose(1, 2)[:, None]
    found = g.new_empty(n, k, weights.shape[2], o)

    def project(start: int) -> None:
        some = slice(start, start + _PROMPTS_AT_A_TIME)
        multiply(weights[some], g[some], found[some])

    side_by_side([partial(project, a) for a in range(0, n, _PROMPTS_AT_A_TIME)], g.device)
    return found.flatten(2).flatten(0, 1)
