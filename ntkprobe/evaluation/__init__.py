"""Answers of models to benchmarks, and the verdicts of judges on them.

On disk: raw answers and raw verdicts (`E/answers`, `E/verdicts`). Rates, intervals and agreement
are derived when they are read, never stored.
"""

from typing import TYPE_CHECKING

from ..lazy_imports import names_of

if TYPE_CHECKING:
    from .judging import Item as Item
    from .judging import Judge as Judge
    from .judging import Verdict as Verdict
    from .results import Evaluation as Evaluation

_HOMES = {"Evaluation": "results", "Item": "judging", "Judge": "judging", "Verdict": "judging"}
__all__ = sorted(_HOMES)


__getattr__ = names_of(__name__, _HOMES)
