"""What a module computes with besides its tensors: numbers, texts, and the hooks on it."""

from collections.abc import Hashable, Iterator
from typing import Any

from torch import nn

_PLAIN = (bool, int, float, str, type(None))
_NAMES = {"name_or_path"}  # of the folder that a model was loaded from, another at every checkpoint


def module_settings(module: nn.Module) -> tuple[Hashable, ...]:
    """Return what a module is, with its settings and the hooks that are on it.

    An adapter's scaling, and which adapters of a layer are active or merged, are such settings.
    """
    plain: tuple[Hashable, ...] = tuple(sorted(_plain(vars(module))))
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    names: tuple[Hashable, ...] = tuple(
        getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks
    )
    kind: Any = type(module)
    return kind, "forward" in vars(module), plain, names


def _plain(attributes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the attributes that are numbers and texts, or hold nothing else, as text."""
    for name, value in attributes.items():
        if name not in _NAMES and all(isinstance(one, _PLAIN) for one in _parts(value)):
            keys = list(value) if isinstance(value, dict) else type(value).__name__
            yield name, repr((keys, *map(_text, _parts(value))))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict | list | tuple):
        return list(value.values() if isinstance(value, dict) else value)
    return [value]


def _text(value: Any) -> str:
    """Return a number or a text; five digits of what other threads may round otherwise."""
    return f"{value:.5g}" if isinstance(value, float) else repr(value)
