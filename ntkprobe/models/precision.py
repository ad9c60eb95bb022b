"""Precision of a pass: of operations within it, of parameters, of float32 matrix products.

Two of the context managers intercept every torch function of a pass, so this module is not among
those whose shapes are checked under pytest: checking each call would take longer than the pass.
"""

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Float64Throughout(TorchFunctionMode):
    """Computes in float64 where transformers uses float32: norms, softmax, rotary angles.

    `model.double()` alone is not enough: RMSNorm and eager attention cast to float32, with errors
    of 1e-7. Enter it around the forward pass of a model in float64.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the result of `func` with float64 in the place of float32."""
        if func is Tensor.float:
            return args[0].double()
        named = {key: _double(value) for key, value in (kwargs or {}).items()}
        return func(*map(_double, args), **named)


class _ClampedCasts(TorchFunctionMode):
    """Clamps values cast from float64 to float32 to the range of float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the result of `func`, with its first argument clamped if `func` casts it."""
        named = kwargs or {}
        x = args[0] if args else None
        if isinstance(x, Tensor) and x.dtype == torch.float64:
            given = (*args[1:], *named.values())
            dtypes = [v.dtype if isinstance(v, Tensor) else v for v in given]
            if func is Tensor.float or (torch.float32 in dtypes and func.__name__ in _CASTING):
                limits = torch.finfo(torch.float32)
                args = (x.clamp(limits.min, limits.max), *args[1:])
        return func(*args, **named)


_CASTING = {"softmax", "to", "type", "type_as"}


def clamped_casts(model: nn.Module) -> AbstractContextManager[Any]:
    """Return the context in which a model in float64 can run on padded prompts.

    Its masks hold the lowest number of float64. Where its softmax is in float32, that becomes −∞,
    and a row of only −∞, as of padding on the left, gives NaN.
    """
    wide = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    return _ClampedCasts() if wide else nullcontext()


def _double(argument: Any) -> Any:
    """Return float64 for float32, anything else unchanged."""
    return torch.float64 if argument is torch.float32 else argument


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


def at_least_single(values: Tensor) -> Tensor:
    """Return a gradient in float32 or float64: sums in half precision are too inaccurate."""
    return values if values.dtype == torch.float64 else values.float()


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
