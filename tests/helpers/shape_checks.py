"""The type checker of jaxtyping's import hook under pytest: beartype, once for each signature.

A function inside another is made anew with each call of that one, and the hook decorates it each
time. What beartype generates depends on the signature alone, and takes milliseconds.
"""

from collections.abc import Callable
from typing import Any, get_args, get_origin

from beartype import beartype
from jaxtyping import AbstractArray

_CHECKERS: dict[tuple[Any, ...], Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks the annotations of one that jaxtyping generated.

    Such a function has a signature and no behaviour: it returns its last keyword or nothing.
    """
    code = function.__code__
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()]
    key = (
        function.__module__,
        function.__qualname__,
        code.co_code,
        code.co_varnames,
        code.co_flags,
        (code.co_posonlyargcount, code.co_argcount, code.co_kwonlyargcount),
        tuple((name, _meaning(kind)) for name, kind in function.__annotations__.items()),
        repr(defaults),
    )
    try:
        found = _CHECKERS.get(key)
    except TypeError:  # an annotation that has no hash
        return beartype(function)
    if found is None:
        found = _CHECKERS[key] = beartype(function)
    return found


def _meaning(annotation: Any) -> Any:
    """Return what two annotations that check the same have in common: jaxtyping's are made anew."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return (annotation.array_type, annotation.dtypes, annotation.dim_str)
    if parts := get_args(annotation):
        return (get_origin(annotation), *map(_meaning, parts))
    return tuple(map(_meaning, annotation)) if isinstance(annotation, list) else annotation
