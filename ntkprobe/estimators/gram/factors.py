"""A parameter's per-prompt gradients, unformed: the factors of which each is a product.

`g` is always the gradient with respect to what the operation gave out, one for each of the k values
read, and so has k first; positions past a prompt's own `lengths` are padding, where it is zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """Gradients of a matrix that multiplies activations: ∂z_i/∂W = Σ_t g_it ⊗ a_t.

    `columns` names the entries of the output that `g` holds where it leaves out ones always zero.
    """

    a: Float[Tensor, "n seq width"]
    g: Float[Tensor, "k n seq out"]
    lengths: tuple[int, ...]
    columns: Int[Tensor, " out"] | None = None


@dataclass(frozen=True)
class Lookup:
    """Gradients of a table that is looked up: row `ids[t]` of ∂z_i/∂W receives g_it."""

    ids: Int[Tensor, "n seq"]
    g: Float[Tensor, "k n seq width"]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Direct:
    """Gradients formed: of biases, norms and whatever has no cheaper product."""

    v: Float[Tensor, "k n size"]


Factor = Outer | Lookup | Direct


def merged(factors: Sequence[Factor]) -> list[Factor]:
    """Return the factors of one parameter used several times as one of each kind, their sum the same.

    Uses of a matrix are more positions of one use, so that the products hold their cross terms.
    """
    outers = [f for f in factors if isinstance(f, Outer)]
    lookups = [f for f in factors if isinstance(f, Lookup)]
    directs = [f for f in factors if isinstance(f, Direct)]
    found: list[Factor] = []
    if outers:
        found.append(_joined(outers) if len(outers) > 1 else outers[0])
    if lookups:
        ids, g = torch.cat([f.ids for f in lookups], 1), torch.cat([f.g for f in lookups], 2)
        found.append(Lookup(ids, g, _full(g)) if len(lookups) > 1 else lookups[0])
    if directs:
        found.append(Direct(torch.stack([f.v for f in directs]).sum(0)))
    return found


def _joined(outers: list[Outer]) -> Outer:
    """Return several uses of a matrix as one, position after position."""
    same = all(
        f.columns is outers[0].columns and f.g.shape[3] == outers[0].g.shape[3] for f in outers
    )
    if not same:
        raise ValueError("uses of one matrix of different columns cannot be joined")
    a, g = torch.cat([f.a for f in outers], 1), torch.cat([f.g for f in outers], 2)
    return Outer(a, g, _full(g), outers[0].columns)


def _full(g: Float[Tensor, "k n seq out"]) -> tuple[int, ...]:
    """Return the lengths of prompts none of which is padded."""
    return (g.shape[2],) * g.shape[1]
