"""What all prompts begin with, a chat template say: paid for once per prompt, not once per pair.

Where prompts have the same first r tokens, they have the same activations there. With Q, r
orthonormal vectors that span those, each gradient is a sum of two, and either is orthogonal to the
other's kind in every other prompt:

∂z_i/∂W = Σ_t g_it ⊗ a_t = Σ_u (Σ_t (a_t·q_u) g_it) ⊗ q_u + Σ_{t≥r} g_it ⊗ (a_t − Σ_u (a_t·q_u) q_u)

The first is r vectors of a prompt, its inner products one product of large matrices; the second has
r positions fewer than the prompt.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from . import orders
from .factors import Outer
from .orders import Block, Known, Product, multiply_adds, room
from .threads import multiply, side_by_side

_PROMPTS_AT_A_TIME = 4
_SAME = {torch.float32: 1e-5, torch.float64: 1e-13}  # relative: rounding depends on the batch


@dataclass(frozen=True)
class Split:
    """Activations in the basis, and what is orthogonal to it beyond the shared positions."""

    inside: Float[Tensor, "n seq span"]
    beyond: Float[Tensor, "n own width"]


def contracted(p: Outer, q: Outer, known: Known) -> Product:
    """Return the inner products of two matrices' gradients in the cheapest order, yet to be done.

    Args:
        p: the factor of the observed prompts, the rows.
        q: that of the updated ones.
        known: what modules of the same inputs share, by the tensors that those are.
    """
    p, q = orders.same_columns(p, q)
    key = ("shared", p.a.data_ptr(), p.a.shape, q.a.data_ptr(), q.a.shape)
    if key not in known:
        known[key] = shared(p, q)
    r = known[key]
    if r == 0 or not _cheaper(p, q, r):
        return orders.contracted(p, q, known)
    if (*key, r) not in known:
        known[*key, r] = _splits(p, q, r)
    left, right = known[*key, r]
    own = _own(p, r, left.beyond)
    rest = orders.contracted(own, own if p is q else _own(q, r, right.beyond), known)
    return replace(rest, result=lambda: _met(p, q, left, right) + rest.result())


def shared(p: Outer, q: Outer) -> int:
    """Return at how many first positions all prompts have the same activations."""
    most = min(*p.lengths, *q.lengths) - 1  # every prompt keeps one of its own
    if most < 1 or p.a.dtype not in _SAME:
        return 0
    one = p.a[0, :most]
    allowed = _SAME[p.a.dtype] * one.abs().amax(1)
    same = torch.stack([(f.a[:, :most] - one).abs().amax((0, 2)) <= allowed for f in (p, q)])
    return int(same.all(0).long().cumprod(0).sum())


def _cheaper(p: Outer, q: Outer, r: int) -> bool:
    """Return whether the split takes fewer operations than the cheapest order without it."""
    n, k, _, o = p.g.shape
    own = _own(p, r, p.a[:, r:])
    rest = multiply_adds(own, own if p is q else _own(q, r, q.a[:, r:]))
    each = [p] if p is q else [p, q]
    inside = sum(r * sum(f.lengths) * (2 * f.a.shape[2] + f.g.shape[1] * o) for f in each)
    met = n * k * r * o * q.g.shape[0] * q.g.shape[1]
    return inside + met + min(rest.values()) < min(multiply_adds(p, q).values())


def _splits(p: Outer, q: Outer, r: int) -> tuple[Split, Split]:
    """Return the splits of both sides' activations."""
    basis = torch.linalg.qr(p.a[0, :r].double().T).Q.T.to(p.a)
    left = _split(p.a, r, basis)
    return left, left if p is q else _split(q.a, r, basis)


def _split(a: Float[Tensor, "n seq width"], r: int, basis: Float[Tensor, "span width"]) -> Split:
    """Return the split of a tile's activations, the first r positions shared."""
    inside = a @ basis.T
    return Split(inside, a[:, r:] - inside[:, r:] @ basis)


def _own(factor: Outer, r: int, beyond: Float[Tensor, "n own width"]) -> Outer:
    """Return a factor of the positions after the shared ones."""
    own = tuple(length - r for length in factor.lengths)
    return replace(factor, a=beyond, g=factor.g[:, :, r:], lengths=own)


def _met(p: Outer, q: Outer, left: Split, right: Split) -> Block:
    """Return the inner products of what lies in the basis, some entries of the output at a time."""
    (n, k, _, o), (m, h, _, _) = p.g.shape, q.g.shape
    out = torch.zeros((n * k, m * h), dtype=torch.float64, device=p.g.device)
    step = max(1, 4 * room(p.g) // (max(n * k, m * h) * left.inside.shape[2]))
    for start in range(0, o, step):
        entries = slice(start, start + step)
        rows = _inside(p.g[..., entries], left)
        out += rows @ (rows if p is q else _inside(q.g[..., entries], right)).T
    return out.view(n, k, m, h)


def _inside(g: Float[Tensor, "n k seq out"], split: Split) -> Float[Tensor, "nk span_out"]:
    """Return Σ_t (a_t·q_u) g_it of every prompt and value, a row each."""
    n, k, _, o = g.shape
    weights = split.inside.transpose(1, 2)[:, None]
    found = g.new_empty(n, k, weights.shape[2], o)

    def enter(start: int) -> None:
        some = slice(start, start + _PROMPTS_AT_A_TIME)
        multiply(weights[some], g[some], found[some])

    side_by_side([partial(enter, a) for a in range(0, n, _PROMPTS_AT_A_TIME)], g.device)
    return found.flatten(2).flatten(0, 1)
