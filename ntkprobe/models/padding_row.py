"""The row of the padding token in an embedding that names one (`padding_idx`).

PyTorch leaves the row out of the gradient wherever the token is looked up, and so out of training.
Yet many tokenizers pad with a token that their chat template writes in every prompt, such as
<|im_end|>; there the row is part of the function. A head tied to the embedding, or weight decay,
moves the row all the same.

| what is differentiated            | the row, where it is looked up                             |
|-----------------------------------|------------------------------------------------------------|
| a step of training, J(x)ᵀ G       | constant, as PyTorch has it                                |
| the kernel, J(x′) J(x)ᵀ           | constant on both sides: the gradients are those of training |
| an observed value along a step Δθ | a variable: Δθ may move it (`varying_padding_row`)         |

Forward mode and finite differences see the function, in which the row is a variable; the kernel's
estimators that use them hold it constant (`constant_padding_row`).
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .replacement import replace_attributes


@contextmanager
def varying_padding_row(model: nn.Module) -> Generator[None]:
    """Let reverse mode differentiate lookups of the padding token like any other."""
    with ExitStack() as stack:
        for embedding in _with_padding(model):
            stack.enter_context(replace_attributes(embedding, padding_idx=None))
        yield


@contextmanager
def constant_padding_row(model: nn.Module) -> Generator[None]:
    """Keep the output of lookups of the padding token as it is, whatever θ becomes."""
    handles = []
    try:
        for embedding in _with_padding(model):
            handles.append(embedding.register_forward_hook(_Keep(embedding)))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Keep:
    """A hook that puts an embedding's output for the padding token at θ in its place."""

    def __init__(self, embedding: nn.Embedding) -> None:
        self.token = embedding.padding_idx
        with torch.no_grad():
            given = torch.tensor([self.token], device=embedding.weight.device)
            self.kept = embedding(given)[0].clone()

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return torch.where((inputs[0] == self.token)[..., None], self.kept, output)


def _with_padding(model: nn.Module) -> list[nn.Embedding]:
    """Return the embeddings that name a padding token."""
    modules = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    return [module for module in modules if module.padding_idx is not None]
