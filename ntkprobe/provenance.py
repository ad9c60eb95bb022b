"""What computed a number: kept beside it on disk."""

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .errors import UserError


def versions() -> dict[str, str]:
    """Return the versions of what computes the numbers."""
    found = {"python": platform.python_version()}
    for name in ("ntkprobe", "torch", "transformers", "peft", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def insist_on_agreement(
    folder: object, done: str, before: Mapping[str, Any], now: Iterable[tuple[str, Any]]
) -> None:
    """Raise if a setting contradicts what a folder has; what only one of them has does not.

    Args:
        folder: for the message.
        done: what was done there, such as `measured`.
        before: the folder's settings, by dotted name.
        now: those asked for.

    Raises:
        UserError: naming the first such setting with both values.
    """
    for name, value in now:
        if name in before and before[name] != value:
            raise UserError(
                f"{folder} was {done} with {name} = {before[name]!r}, now it is {value!r}: give"
                " another --output-dir, or --overwrite"
            )
