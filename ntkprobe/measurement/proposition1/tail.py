"""J_g = ∂z/∂h: the Jacobian of the last position's logits by layer ℓ's output (A.7, A1)."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from ...models import architecture
from ...models.parameters import requiring_grad
from ..full_vocabulary import Head, head_input, head_state

_ROWS_AT_A_TIME = 64  # of the Jacobian, in one batched backward pass


@dataclass(frozen=True)
class Tail:
    """The part of a model after layer ℓ, at one prompt.

    Attributes:
        spectral: ‖J_g‖₂.
        frobenius: ‖J_g‖_F.
        last: h at the last position, on which DCR's loss depends.
    """

    spectral: float
    frobenius: float
    last: Float64[Tensor, " d"]


def tail_at(model: nn.Module, head: Head, ids: Int[Tensor, " seq"], layer: int) -> Tail:
    """Return the norms of the tail's Jacobian at one prompt, exactly.

    J_g = D E J_n, with the head E, the slope D of what follows it (1 without a soft cap), and J_n
    the Jacobian of the head's input: as many backward passes as the model is wide.
    """
    states, rows = head_input_jacobian(model, head.module, ids, layer)
    _, slope = head_state(model, head.module, ids)
    scaled = slope[:, None] * head.matrix
    values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    squares = torch.linalg.eigvalsh(root @ (rows @ rows.T) @ root).clamp(min=0)
    return Tail(float(squares[-1].sqrt()), float(squares.sum().sqrt()), states[-1])


def head_input_jacobian(
    model: nn.Module, head: nn.Module, ids: Int[Tensor, " seq"], layer: int
) -> tuple[Float64[Tensor, "seq d"], Float64[Tensor, "d inputs"]]:
    """Return h `[seq, d]`, and J_n `[d, seq·d]`: the Jacobian of the head's input by h."""
    captured: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        captured.append(architecture.hidden_state(output).detach().requires_grad_())
        return architecture.with_output_state(output, captured[0])

    with architecture.hooked([(architecture.layer_output(model, layer), cut)]):
        with requiring_grad(model, {}), torch.enable_grad():
            final = head_input(model, head, ids)
            basis = torch.eye(len(final), dtype=final.dtype, device=final.device)
            found = [_rows(final, captured[0], some) for some in basis.split(_ROWS_AT_A_TIME)]
    states = captured[0].detach()[0].double().cpu()
    return states, torch.cat(found)


def _rows(
    final: Float[Tensor, " d"], states: Float[Tensor, "1 seq d"], basis: Float[Tensor, "some d"]
) -> Float64[Tensor, "some inputs"]:
    (found,) = torch.autograd.grad(final, states, basis, retain_graph=True, is_grads_batched=True)
    return found.flatten(1).double().cpu()
