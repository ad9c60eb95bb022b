"""J_g = ∂z/∂h: the logits at the last position by layer ℓ's output at all positions (A.7, A1)."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from ...models import architecture as hooks
from ...models.parameters import requiring_grad
from ..full_vocabulary import Head, entering, read

_ROWS_AT_A_TIME = 64  # of the Jacobian, in one batched backward pass


@dataclass(frozen=True)
class Tail:
    """What follows layer ℓ, at one prompt.

    Attributes:
        spectral: ‖J_g‖₂.
        frobenius: ‖J_g‖_F.
        last: h at the last position, which DCR's loss looks at.
    """

    spectral: float
    frobenius: float
    last: Float64[Tensor, " d"]


def tail_at(model: nn.Module, head: Head, ids: Int[Tensor, " seq"], layer: int) -> Tail:
    """Return the tail's Jacobian at one prompt by its norms, exactly.

    J_g = D E J_n, with the head E, the slope D of what follows it (1 without a soft cap), and J_n
    the Jacobian of what enters the head: as many backward passes as the model is wide.
    """
    states, rows = entering_by_layer(model, head.module, ids, layer)
    _, slope = read(model, head.module, ids)
    scaled = slope[:, None] * head.matrix
    values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    squares = torch.linalg.eigvalsh(root @ (rows @ rows.T) @ root).clamp(min=0)
    return Tail(float(squares[-1].sqrt()), float(squares.sum().sqrt()), states[-1])


def entering_by_layer(
    model: nn.Module, head: nn.Module, ids: Int[Tensor, " seq"], layer: int
) -> tuple[Float64[Tensor, "seq d"], Float64[Tensor, "d inputs"]]:
    """Return h `[seq, d]`, and J_n `[d, seq·d]`: what enters the head by h, positions outermost."""
    kept: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        kept.append(hooks.hidden_state(output).detach().requires_grad_())
        return kept[0] if isinstance(output, Tensor) else (kept[0], *output[1:])

    with hooks.hooked([(hooks.layer_output(model, layer), cut)]):
        with requiring_grad(model, {}), torch.enable_grad():
            entered = entering(model, head, ids)
            found = [
                _rows(entered, kept[0], basis) for basis in _basis(entered).split(_ROWS_AT_A_TIME)
            ]
    states = kept[0].detach()[0].double().cpu()
    return states, torch.cat(found)


def _basis(values: Float[Tensor, " d"]) -> Float[Tensor, "d d"]:
    """Return the unit vectors."""
    return torch.eye(len(values), dtype=values.dtype, device=values.device)


def _rows(
    entered: Float[Tensor, " d"], states: Float[Tensor, "1 seq d"], basis: Float[Tensor, "some d"]
) -> Float64[Tensor, "some inputs"]:
    """Return some rows of J_n."""
    (found,) = torch.autograd.grad(entered, states, basis, retain_graph=True, is_grads_batched=True)
    return found.flatten(1).double().cpu()
