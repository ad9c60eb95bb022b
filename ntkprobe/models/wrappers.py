"""The model inside what a trainer puts around it: processes, compilation, mixed precision.

`accelerate` replaces the `forward` of a model that is trained with bf16 or fp16 by one under
autocast, and leaves it so when training has ended: the same object then computes something else
than its weights do when they are loaded from the checkpoint.
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
_PLAIN_FORWARD = "_original_forward"  # where accelerate keeps the forward that it replaced
_COMPILED = "_compiled_call_impl"  # where torch keeps what `module.compile()` made


def wrapper_of(model: nn.Module) -> str | None:
    """Return how the model inside a wrapper is reached, such as `module`; None for no wrapper."""
    kinds = (kind.__name__ for kind in type(model).__mro__)
    return next((_INSIDE[kind] for kind in kinds if kind in _INSIDE), None)


def inner_model(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers, however many there are."""
    while (inside := wrapper_of(model)) is not None:
        model = getattr(model, inside)
    return model


def is_under_autocast(module: nn.Module) -> bool:
    """Return whether accelerate replaced a module's `forward` by one under autocast."""
    kept = vars(module).get(_PLAIN_FORWARD)
    return kept is not None and vars(module).get("forward", kept) is not kept


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module was compiled in place, which may not notice hooks added since."""
    return vars(module).get(_COMPILED) is not None


@contextmanager
def computing_plainly(model: nn.Module) -> Generator[nn.Module]:
    """Let a model compute what its weights say for as long as the block lasts.

    Outside of the autocast that a trainer put around `forward`, and uncompiled; afterwards it is as
    it was.

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
