"""A parameter's per-prompt gradients, unformed: the factors of which each is a product.

`g` is always the gradient with respect to what the operation gave out, for each of n prompts and k
values; positions past a prompt's own `lengths` are padding, where it is zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """Gradients of a matrix that multiplies activations: ∂z_i/∂W = Σ_t g_it ⊗ a_t.

    `columns` names the entries of the output that `g` holds, where it leaves out some always zero.
    """

    a: Float[Tensor, "n seq width"]
    g: Float[Tensor, "n k seq out"]
    lengths: tuple[int, ...]
    columns: Int[Tensor, " out"] | None = None


@dataclass(frozen=True)
class Lookup:
    """Gradients of a table that is looked up: row `ids[t]` of ∂z_i/∂W receives g_it."""

    ids: Int[Tensor, "n seq"]
    g: Float[Tensor, "n k seq width"]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Direct:
    """Gradients as they are: of biases and norms, and of what has no rule."""

    v: Float[Tensor, "n k size"]


Factor = Outer | Lookup | Direct


def summed(factors: Sequence[Factor]) -> list[Factor]:
    """Return the factors of one parameter's uses as one of each kind, with the same sum.

    Uses of a matrix become more positions of one use, so that products hold their cross terms.
    """
    outers = [f for f in factors if isinstance(f, Outer)]
    lookups = [f for f in factors if isinstance(f, Lookup)]
    directs = [f for f in factors if isinstance(f, Direct)]
    found: list[Factor] = [*outers[:1], *lookups[:1]]
    if len(outers) > 1:
        a, g = torch.cat([f.a for f in outers], 1), torch.cat([f.g for f in outers], 2)
        found[0] = Outer(a, g, _full(g), outers[0].columns)
    if len(lookups) > 1:
        ids, g = torch.cat([f.ids for f in lookups], 1), torch.cat([f.g for f in lookups], 2)
        found[-1] = Lookup(ids, g, _full(g))
    return [*found, Direct(torch.stack([f.v for f in directs]).sum(0))] if directs else found


def _full(g: Float[Tensor, "n k seq out"]) -> tuple[int, ...]:
    """Return the lengths of prompts none of which is padded."""
    return (g.shape[2],) * g.shape[0]


def narrowed(factor: Factor, columns: Int[Tensor, " some"]) -> Factor:
    """Return a factor with only these entries of the output, if the others are all zero."""
    if not isinstance(factor, Outer):
        return factor
    kept = factor.g[..., columns]
    if int(kept.count_nonzero()) != int(factor.g.count_nonzero()):
        return factor
    return replace(factor, g=kept, columns=columns)


def trimmed(factor: Factor) -> Factor:
    """Return a factor without positions where every gradient is zero: most of the last block's."""
    if not isinstance(factor, Outer) or factor.g.shape[2] == 1:
        return factor
    live = factor.g.ne(0).any(3).any(1)
    counts = live.sum(1)
    longest = max(int(counts.max()), 1)
    if 2 * longest > live.shape[1]:
        return factor
    order = live.long().argsort(dim=1, descending=True, stable=True)[:, :longest]
    rows = torch.arange(len(order), device=order.device)[:, None]
    return replace(
        factor,
        a=factor.a[rows, order],
        g=factor.g.transpose(1, 2)[rows, order].transpose(1, 2).contiguous(),
        lengths=tuple(counts.tolist()),
    )
