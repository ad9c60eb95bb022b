"""Inner products of per-prompt gradients, from their factors: ⟨∂z_i(x_a)/∂W, ∂z_j(x_b)/∂W⟩.

A matrix has three orders of contraction, and the cheapest by operation count is taken. In
multiply-adds for n prompts of T positions, k values each, and a matrix from I to O:

| order    | contracts                                        | multiply-adds                       |
|----------|--------------------------------------------------|-------------------------------------|
| ghost    | (a·a′)(g·g′), summed over both positions         | n²T²I + n²k²T²O                     |
| mixed    | a·a′ into g′, then with g: the k values share a  | n²T²I + n²kT²O + n²k²TO             |
| explicit | g⊗a, the gradient itself, some rows at a time    | nkTIO + n²k²IO                      |

Half of each where a tile meets itself, by symmetry.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .factors import Direct, Factor, Lookup, Outer

Block = Float64[Tensor, "n k m l"]
FLOATS_AT_A_TIME = {"cpu": 2**21, "cuda": 2**27}  # of a product's intermediate: what caches hold


def product(p: Factor, q: Factor) -> Block:
    """Return the inner products of two factors of one parameter, rows from `p`.

    Raises:
        TypeError: if the factors are of kinds that no parameter has together.
    """
    if isinstance(p, Outer) and isinstance(q, Outer):
        return _ORDERS[cheapest(p, q)](*_alike(p, q))
    if isinstance(p, Direct) and isinstance(q, Direct):
        return torch.einsum("nkp,mlp->nkml", p.v, q.v).double()
    if isinstance(p, Lookup) and isinstance(q, Lookup):
        return _equal_tokens(p, q)
    if isinstance(p, Outer) and isinstance(q, Lookup):
        return _matrix_and_table(p, q)
    if isinstance(p, Lookup) and isinstance(q, Outer):
        return _matrix_and_table(q, p).permute(2, 3, 0, 1)
    raise TypeError(f"no product of {type(p).__name__} and {type(q).__name__}")


def _alike(p: Outer, q: Outer) -> tuple[Outer, Outer]:
    """Return both with the same entries of the output: what one leaves out is zero in it."""
    if p.columns is not None and q.columns is None:
        q = replace(q, g=q.g[..., p.columns], columns=p.columns)
    if q.columns is not None and p.columns is None:
        p = replace(p, g=p.g[..., q.columns], columns=q.columns)
    return p, q


def multiply_adds(p: Outer, q: Outer) -> dict[str, float]:
    """Return the operations that each order takes."""
    (n, k, _, o), (m, l), width = p.g.shape, q.g.shape[:2], p.a.shape[2]
    rows, columns = sum(p.lengths), sum(q.lengths)
    half = 0.5 if p is q else 1.0
    alike = rows * columns * width
    gradients = (rows * k + (0 if p is q else columns * l)) * width * o
    return {
        "ghost": half * (alike + rows * columns * k * l * o),
        "mixed": half * (alike + rows * columns * l * o + rows * m * k * l * o),
        "explicit": gradients + half * n * k * m * l * width * o,
    }


def cheapest(p: Outer, q: Outer) -> str:
    """Return the order of fewest operations."""
    counts = multiply_adds(p, q)
    return min(counts, key=lambda order: counts[order])


def _room(like: Tensor) -> int:
    """Return how many floats an intermediate should have at most."""
    return FLOATS_AT_A_TIME.get(like.device.type, FLOATS_AT_A_TIME["cpu"])


def _ghost(p: Outer, q: Outer) -> Block:
    """Return Σ_ts (a_t·a′_s)(g_it·g′_js)."""
    (n, k, t, _), (m, l, s, _) = p.g.shape, q.g.shape
    alike = torch.einsum("ati,bsi->atbs", p.a, q.a)
    out = p.g.new_empty((n, k, m, l), dtype=torch.float64)
    step = max(1, _room(p.g) // (n * k * t * l * s))
    for b in range(0, m, step):
        some = slice(b, b + step)
        gradients = torch.einsum("aito,bjso->aitbjs", p.g, q.g[some])
        out[:, :, some] = torch.einsum("aitbjs,atbs->aibj", gradients, alike[:, :, some])
    return out


def _mixed(p: Outer, q: Outer) -> Block:
    """Return Σ_t g_it · (Σ_s (a_t·a′_s) g′_js), as many prompts at a time as caches hold."""
    (n, k, t, o), (m, l, s, _) = p.g.shape, q.g.shape
    alike = torch.einsum("ati,bsi->abts", p.a, q.a)
    out = p.g.new_empty((n, k, m, l), dtype=torch.float64)
    step = max(1, _room(p.g) // (l * t * o))
    for a in range(n):
        for b in range(a if p is q else 0, m, step):
            some = slice(b, b + step)
            carried = torch.matmul(alike[a, some].unsqueeze(1), q.g[some])  # [b, j, t, o]
            found = p.g[a].reshape(k, -1) @ carried.view(-1, t * o).T
            out[a, :, some] = found.view(k, -1, l)
    return _mirrored(out) if p is q else out


def _explicit(p: Outer, q: Outer) -> Block:
    """Return the products of the gradients themselves, some rows of the matrix at a time."""
    (n, k, _, o), (m, l, _, _), width = p.g.shape, q.g.shape, p.a.shape[2]
    out = p.g.new_zeros((n, k, m, l), dtype=torch.float64)
    step = max(1, 8 * _room(p.g) // (max(n * k, m * l) * width))
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
    """Return Σ_ts [token t = token s] g_it·g′_js, a token at a time."""
    (n, k, _, _), (m, l, _, _) = p.g.shape, q.g.shape
    out = p.g.new_zeros((n, k, m, l), dtype=torch.float64)
    for token in set(p.ids.flatten().tolist()) & set(q.ids.flatten().tolist()):
        (rows, left), (columns, right) = _summed(p, token), _summed(q, token)
        shared = torch.einsum("aid,bjd->abij", left, right).double()
        out[rows[:, None], :, columns] += shared
    return out


def _summed(table: Lookup, token: int) -> tuple[Tensor, Float[Tensor, "some k width"]]:
    """Return the prompts that hold a token, and what each sends to its row."""
    held = table.ids == token
    prompts = held.any(1).nonzero()[:, 0]
    return prompts, torch.einsum("aisd,as->aid", table.g[prompts], held[prompts].to(table.g))


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
