"""Precision of the computation: dtype of parameters, and of float32 matrix products."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import nn

_LOW = (torch.bfloat16, torch.float16)


@contextmanager
def computing_in(
    dtype: torch.dtype, modules: Iterable[nn.Module], apart: nn.Module | None = None
) -> Generator[None]:
    """Cast parameters and low-precision buffers to `dtype` inside the `with` block.

    Args:
        dtype: the dtype to compute in.
        modules: the modules.
        apart: a module within these that is not cast.
    """
    left = {id(x) for x in (*apart.parameters(), *apart.buffers())} if apart is not None else set()
    tensors = {id(x): x for m in modules for x in (*m.parameters(), *m.buffers())}
    held = [
        (x, x.data)
        for key, x in tensors.items()
        if key not in left
        and x.dtype != dtype
        and (isinstance(x, nn.Parameter) or x.dtype in _LOW)
        and x.is_floating_point()
    ]
    try:
        for tensor, data in held:
            tensor.data = data.to(dtype)
        yield
    finally:
        for tensor, data in held:
            tensor.data = data


@contextmanager
def full_float32() -> Generator[None]:
    """Multiply float32 matrices in float32: no TF32 on a GPU, no bfloat16 on a CPU.

    This sets each backend: the common setting (`set_float32_matmul_precision`) cannot be read once
    a backend has its own.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
