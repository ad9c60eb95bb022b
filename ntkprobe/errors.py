"""A user's mistake, a warning about what was asked for, and how both are shown: one clear line."""

import unicodedata


class UserError(ValueError):
    """A mistake in the call: says what was wrong, what is allowed, and what to do, in one line."""


class MeasurementWarning(UserWarning):
    """What a reader of the numbers should know about what was asked for; nothing is wrong."""


def one_line(text: object) -> str:
    """Return a text fit for a terminal: one line, no control characters of hostile text."""
    joined = " ".join(str(text).split())
    return "".join(c for c in joined if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
