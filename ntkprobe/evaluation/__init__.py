"""Answers of models to benchmarks, and the verdicts of judges on them.

On disk: raw answers and raw verdicts (`E/answers`, `E/verdicts`). Rates, intervals and agreement
are derived when they are read, never stored.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .results import Evaluation as Evaluation
    from .verdicts import Item as Item
    from .verdicts import Judge as Judge
    from .verdicts import Verdict as Verdict

_HOMES = {"Evaluation": "results", "Item": "verdicts", "Judge": "verdicts", "Verdict": "verdicts"}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Return a public name, imported now, so that `settings` alone loads no pandas (PEP 562).

    Raises:
        AttributeError: if there is no such name.
    """
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
