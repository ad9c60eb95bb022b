"""A user's mistake, a warning about what was asked for, and how both are shown: one clear line."""

import unicodedata
from numbers import Integral
from typing import Any


class UserError(ValueError):
    """A mistake in the call: says what was wrong, what is allowed, and what to do, in one line."""


class MeasurementWarning(UserWarning):
    """What a reader of the numbers should know about what was asked for; nothing is wrong."""


def require(condition: object, message: str) -> None:
    """Do nothing if the condition is true.

    Args:
        condition: what has to hold of what the user gave.
        message: what is wrong, what is allowed, and what to do.

    Raises:
        UserError: with the message, if it does not.
    """
    if not condition:
        raise UserError(message)


def count(what: str, value: Any, least: int = 1) -> int:
    """Return a setting that is a number of things.

    Raises:
        UserError: if it is not whole, or too small.
    """
    if not isinstance(value, Integral) or value < least:
        raise UserError(f"{what}={value!r}: give {least} or more, a whole number")
    return int(value)


def one_line(text: object) -> str:
    """Return a text fit for a terminal: one line, no control characters of hostile text."""
    joined = " ".join(str(text).split())
    return "".join(c for c in joined if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
