"""Answers of models to benchmarks, and the verdicts of judges on them.

On disk: raw answers and raw verdicts (`E/answers`, `E/verdicts`). Rates, intervals and agreement
are derived when they are read, never stored.
"""

from typing import TYPE_CHECKING

from ..lazy_imports import names_of

if TYPE_CHECKING:
    from .results import Evaluation as Evaluation
    from .verdicts import Item as Item
    from .verdicts import Judge as Judge
    from .verdicts import Verdict as Verdict

_HOMES = {"Evaluation": "results", "Item": "verdicts", "Judge": "verdicts", "Verdict": "verdicts"}
__all__ = sorted(_HOMES)


__getattr__ = names_of(__name__, _HOMES)
