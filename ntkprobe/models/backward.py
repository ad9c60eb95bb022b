"""The gradient of one number by one backward pass."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def gradients(
    value: Float[Tensor, ""], parameters: Iterable[Tensor], *, retain_graph: bool = False
) -> list[Tensor]:
    """Return ∂value/∂θ, a tensor for every parameter: zeros where the value does not depend on it.

    Args:
        value: a scalar.
        parameters: θ, each requiring a gradient.
        retain_graph: whether to keep the graph for another backward pass.
    """
    tensors = list(parameters)
    if not value.requires_grad:  # it depends on no parameter, an error for autograd
        return [torch.zeros_like(tensor) for tensor in tensors]
    return list(
        torch.autograd.grad(value, tensors, retain_graph=retain_graph, materialize_grads=True)
    )
