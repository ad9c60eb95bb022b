"""Versions of what computed a number, recorded beside it on disk."""

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Return the versions of what computes the numbers."""
    found = {"python": platform.python_version()}
    for name in ("ntkprobe", "torch", "transformers", "peft", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
