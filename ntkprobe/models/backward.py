"""One backward pass from one number."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def gradients(
    value: Float[Tensor, ""], parameters: Iterable[Tensor], *, again: bool = False
) -> list[Tensor]:
    """Return ∂value/∂θ, a tensor for every parameter: zeros where nothing depends on it.

    Args:
        value: what is differentiated.
        parameters: θ, each requiring a gradient.
        again: keep the graph for another backward pass through it.
    """
    tensors = list(parameters)
    if not value.requires_grad:  # no parameter went into it, of which autograd makes an error
        return [torch.zeros_like(tensor) for tensor in tensors]
    return list(torch.autograd.grad(value, tensors, retain_graph=again, materialize_grads=True))
