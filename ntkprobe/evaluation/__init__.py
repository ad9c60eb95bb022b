"""Answers of models to benchmarks, and the verdicts of judges on them.

On disk: raw answers and raw verdicts (`E/answers`, `E/verdicts`). Rates, intervals and agreement
are derived when they are read, never stored.
"""

from .results import Evaluation as Evaluation
from .verdicts import Item as Item
from .verdicts import Judge as Judge
from .verdicts import Verdict as Verdict
