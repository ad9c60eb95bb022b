"""The model inside a trainer's wrappers: data parallelism, compilation, mixed precision.

`accelerate` replaces the `forward` of a model trained with bf16 or fp16 by one under autocast, and
does not restore it after training: the same object then has other outputs than its weights have
when loaded from the checkpoint.
"""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn

_INSIDE = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "DeepSpeedEngine": "module",
    "OptimizedModule": "_orig_mod",
}
_PLAIN_FORWARD = "_original_forward"  # where accelerate stores the forward that it replaced
_COMPILED = "_compiled_call_impl"  # where torch stores the result of `module.compile()`


def wrapper_of(model: nn.Module) -> str | None:
    """Return the attribute of the model inside a wrapper, such as `module`; None for no wrapper."""
    kinds = (kind.__name__ for kind in type(model).__mro__)
    return next((_INSIDE[kind] for kind in kinds if kind in _INSIDE), None)


def inner_model(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers, however many there are."""
    while (inside := wrapper_of(model)) is not None:
        model = getattr(model, inside)
    return model


def is_under_autocast(module: nn.Module) -> bool:
    """Return whether accelerate replaced a module's `forward` by one under autocast."""
    original = vars(module).get(_PLAIN_FORWARD)
    return original is not None and vars(module).get("forward", original) is not original


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module was compiled in place, which may not notice hooks added since."""
    return vars(module).get(_COMPILED) is not None


@contextmanager
def computing_plainly(model: nn.Module) -> Generator[nn.Module]:
    """Run a model without a trainer's autocast and without compilation inside the `with` block.

    Args:
        model: without a wrapper around it (`inner_model`).

    Yields:
        The same model.
    """
    before = [
        (module, name, vars(module)[name])
        for module in model.modules()
        for name, found in (("forward", is_under_autocast), (_COMPILED, is_compiled))
        if found(module)
    ]
    try:
        for module, name, _ in before:
            vars(module)[name] = vars(module)[_PLAIN_FORWARD] if name == "forward" else None
        yield model
    finally:
        for module, name, was in before:
            vars(module)[name] = was
