"""Inner products of per-prompt gradients, from their factors: ⟨∂z_i(x_a)/∂W, ∂z_j(x_b)/∂W⟩.

A matrix has three orders of contraction, and the cheapest by operation count is taken. In
multiply-adds for n prompts of T positions, k values each, and a matrix from I to O:

| order    | contracts                                        | multiply-adds                       |
|----------|--------------------------------------------------|-------------------------------------|
| ghost    | (a·a′)(g·g′), summed over both positions         | n²T²I + n²k²T²O                     |
| mixed    | a·a′ into g′, then with g: the k values share a  | n²T²I + n²kT²O + n²k²TO             |
| explicit | g⊗a, the gradient itself, some rows at a time    | nkTIO + n²k²IO                      |
"""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .factors import Direct, Factor, Lookup, Outer

Block = Float64[Tensor, "n k m l"]
_FLOATS_AT_A_TIME = 2**24


def product(p: Factor, q: Factor) -> Block:
    """Return the inner products of two factors of one parameter, rows from `p`."""
    if isinstance(p, Outer) and isinstance(q, Outer):
        return _ORDERS[cheapest(p, q)](p, q)
    if isinstance(p, Direct) and isinstance(q, Direct):
        return torch.einsum("knp,lmp->nkml", p.v, q.v).double()
    if isinstance(p, Lookup) and isinstance(q, Lookup):
        return _equal_tokens(p, q)
    if isinstance(p, Outer) and isinstance(q, Lookup):
        return _matrix_and_table(p, q)
    if isinstance(p, Lookup) and isinstance(q, Outer):
        return _matrix_and_table(q, p).permute(2, 3, 0, 1)
    raise TypeError(f"no product of {type(p).__name__} and {type(q).__name__}")


def multiply_adds(p: Outer, q: Outer) -> dict[str, float]:
    """Return the operations that each order takes."""
    (k, n, _, o), (m, width) = p.g.shape, (q.g.shape[1], p.a.shape[2])
    l, rows, columns = q.g.shape[0], sum(p.lengths), sum(q.lengths)
    pairs, seq = rows * columns, max(rows / n, 1)
    return {
        "ghost": pairs * width + pairs * k * l * o,
        "mixed": pairs * width + pairs * l * o + rows * m * k * l * o,
        "explicit": (rows * k + columns * l) * width * o + n * k * m * l * width * o,
    }


def cheapest(p: Outer, q: Outer) -> str:
    """Return the order of fewest operations."""
    counts = multiply_adds(p, q)
    return min(counts, key=lambda order: counts[order])


def _ghost(p: Outer, q: Outer) -> Block:
    """Return Σ_ts (a_t·a′_s)(g_it·g′_js)."""
    (k, n, t, o), (l, m, s, _) = p.g.shape, q.g.shape
    activations = torch.einsum("ati,bsi->atbs", p.a, q.a)
    out = torch.empty(n, k, m, l, dtype=torch.float64, device=p.g.device)
    step = max(1, _FLOATS_AT_A_TIME // (k * n * t * l * s))
    for b in range(0, m, step):
        some = slice(b, b + step)
        gradients = torch.einsum("iato,jbso->iatjbs", p.g, q.g[:, some])
        out[:, :, some] = torch.einsum("iatjbs,atbs->aibj", gradients, activations[:, :, some])
    return out


def _mixed(p: Outer, q: Outer) -> Block:
    """Return Σ_t g_it · (Σ_s (a_t·a′_s) g′_js)."""
    (k, n, t, o), (l, m, s, _) = p.g.shape, q.g.shape
    out = torch.empty(n, k, m, l, dtype=torch.float64, device=p.g.device)
    for b in range(m):
        activations = torch.einsum("ati,si->ats", p.a, q.a[b])
        carried = torch.einsum("ats,jso->jato", activations, q.g[:, b])
        out[:, :, b] = torch.einsum("iato,jato->aij", p.g, carried)
    return out


def _explicit(p: Outer, q: Outer) -> Block:
    """Return the products of the gradients themselves, some rows of the matrix at a time."""
    (k, n, _, o), (l, m, _, _) = p.g.shape, q.g.shape
    width = p.a.shape[2]
    out = torch.zeros(n, k, m, l, dtype=torch.float64, device=p.g.device)
    step = max(1, _FLOATS_AT_A_TIME // (max(n * k, m * l) * width))
    for row in range(0, o, step):
        some = slice(row, row + step)
        left = torch.einsum("iato,atw->aiow", p.g[..., some], p.a)
        right = left if p is q else torch.einsum("iato,atw->aiow", q.g[..., some], q.a)
        out += torch.einsum("aiow,bjow->aibj", left, right)
    return out


_ORDERS = {"ghost": _ghost, "mixed": _mixed, "explicit": _explicit}


def _equal_tokens(p: Lookup, q: Lookup) -> Block:
    """Return Σ_ts [token t = token s] g_it·g′_js, a token at a time."""
    (k, n, _, _), (l, m, _, _) = p.g.shape, q.g.shape
    out = torch.zeros(n, k, m, l, dtype=torch.float64, device=p.g.device)
    for token in set(p.ids.flatten().tolist()) & set(q.ids.flatten().tolist()):
        (rows, left), (columns, right) = _summed(p, token), _summed(q, token)
        shared = torch.einsum("iad,jbd->aibj", left, right).double()
        out[rows[:, None], :, columns] += shared.transpose(1, 2)
    return out


def _summed(table: Lookup, token: int) -> tuple[Tensor, Float[Tensor, "k some width"]]:
    """Return the prompts that hold a token, and what each sends to its row."""
    held = table.ids == token
    prompts = held.any(1).nonzero()[:, 0]
    return prompts, torch.einsum("ians,an->ias", table.g[:, prompts], held[prompts].to(table.g))


def _matrix_and_table(p: Outer, q: Lookup) -> Block:
    """Return Σ_ts g_it[token s] (a_t·g′_js): one matrix both multiplied by and looked up (tied)."""
    entries = _entries(p, q.ids)
    weights = torch.einsum("atd,jbsd->atjbs", p.a, q.g)
    return torch.einsum("iatbs,atjbs->aibj", entries, weights).double()


def _entries(p: Outer, ids: Tensor) -> Float[Tensor, "k n seq m ids"]:
    """Return the entries of g at given tokens, zero for the columns left out."""
    if p.columns is None:
        return p.g[..., ids]
    place = torch.searchsorted(p.columns, ids).clamp(max=len(p.columns) - 1)
    return p.g[..., place] * (p.columns[place] == ids)
