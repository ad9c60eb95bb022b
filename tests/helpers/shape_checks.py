"""The checks of shape annotations under pytest: jaxtyping's, in a function's first calls of a test.

jaxtyping's import hook decorates every function of a module. Its checks take longer than most of
what they check, and a test that calls a function a thousand times learns nothing from the last
hundreds. So functions without a shape in their annotations are left as they are (mypy reads their
types), and of each other function `CALLS` calls are checked in every test.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from types import CodeType
from typing import Any, get_args, get_origin

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray

CALLS = 10
_ORIGINAL = jaxtyping.jaxtyped
_CALLED: Counter[CodeType] = Counter()
_SHAPED: dict[CodeType, bool] = {}
_CHECKERS: dict[tuple[Any, ...], Callable[..., Any]] = {}


def install() -> None:
    """Let jaxtyping's hook decorate with `checked_at_first`, in modules that are imported later."""
    jaxtyping.jaxtyped = checked_at_first


def begin_test() -> None:
    """Check the next calls of every function again."""
    _CALLED.clear()


def checked_at_first(decorated: Any = None, *, typechecker: Any) -> Any:
    """Return a function, or a dataclass, whose first calls of each test are checked."""
    if decorated is None:
        return partial(checked_at_first, typechecker=typechecker)
    if inspect.isclass(decorated):
        if is_dataclass(decorated) and "__init__" in vars(decorated):
            decorated.__init__ = checked_at_first(decorated.__init__, typechecker=typechecker)
        return decorated
    return _counted(decorated, typechecker) if _has_shapes(decorated) else decorated


def _counted(function: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    """Return a function that is checked until its code was called `CALLS` times.

    A function inside another is made anew with each call of that one, of the same code.
    """
    made: list[Callable[..., Any]] = []

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        if _CALLED[function.__code__] >= CALLS:
            return function(*args, **kwargs)
        _CALLED[function.__code__] += 1
        if not made:
            made.append(_ORIGINAL(function, typechecker=typechecker))
        return made[0](*args, **kwargs)

    return counted


def _has_shapes(function: Callable[..., Any]) -> bool:
    """Return whether an annotation of a function has a shape in it."""
    code = function.__code__
    if code not in _SHAPED:
        _SHAPED[code] = any(map(_is_shape, function.__annotations__.values()))
    return _SHAPED[code]


def _is_shape(annotation: Any) -> bool:
    if isinstance(annotation, list):  # the arguments of a Callable
        return any(map(_is_shape, annotation))
    own = isinstance(annotation, type) and issubclass(annotation, AbstractArray)
    return own or any(map(_is_shape, get_args(annotation)))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks the annotations of one that jaxtyping generated.

    Such a function has a signature and no behaviour: it returns its last keyword or nothing. What
    beartype generates depends on the signature alone, and takes milliseconds.
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
