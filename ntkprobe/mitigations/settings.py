"""Settings of a method from a command line or a file, checked for names and types."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Any

from ..errors import UserError
from .base import Mitigation, settings_of


def defaults_of(kind: type[Mitigation]) -> dict[str, Any]:
    """Return the settings of a method with their defaults, None where one has to be given."""
    return {each.name: _default(each) for each in fields(kind) if each.name in settings_of(kind)}


def checked_settings(kind: type[Mitigation], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that fit a method.

    Args:
        kind: the method's class.
        values: by name, as JSON or YAML holds them; several values also joined by commas.

    Returns:
        The same, of the types of their defaults.

    Raises:
        UserError: for a setting that the method does not have, or of another type.
    """
    known = defaults_of(kind)
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f": did you mean {near[0]!r}?" if near else f": choose from {list(known)}"
            raise UserError(f"{kind.__name__} has no setting {name!r}{hint}")
    return {name: _fitting(name, value, known[name]) for name, value in values.items()}


def _default(each: Field) -> Any:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return None if each.default is MISSING else each.default


def _fitting(name: str, value: Any, default: Any) -> Any:
    """Return a value of the default's type.

    Raises:
        UserError: if it is none.
    """
    if isinstance(default, tuple) and default:
        parts = value.split(",") if isinstance(value, str) else value
        parts = parts if isinstance(parts, list | tuple) else [parts]
        return tuple(_fitting(name, part, default[0]) for part in parts)
    if isinstance(value, list):
        return tuple(value)
    if default is None or type(value) is type(default):
        return value
    try:
        if isinstance(default, str) and not isinstance(value, bool | float):
            return str(value)
        if isinstance(default, float) and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise UserError(f"{name} is {value!r}: give {type(default).__name__}, such as {default!r}")
