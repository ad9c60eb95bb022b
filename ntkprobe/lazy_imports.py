"""Public names of a package that are imported when they are first used (PEP 562)."""

import gc
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def names_of(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package, so that importing it alone loads nothing heavy.

    Args:
        package: its name.
        homes: the module within it that holds each public name.

    Returns:
        A function that imports a name, and raises `AttributeError` for any other.
    """

    def __getattr__(name: str) -> Any:
        if name in homes:
            with _nothing_collected():
                module = import_module(f"{package}.{homes[name]}")
            return getattr(module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__


@contextmanager
def _nothing_collected() -> Generator[None]:
    """Make the garbage collector wait, where it was at work.

    Importing torch and transformers makes half a million objects that all stay. Going through them
    again at every few thousand new ones is part of the time of an import.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
