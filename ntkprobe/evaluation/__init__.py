"""What a model answers to the prompts of a benchmark, and what judges say about it.

On disk: raw answers and raw verdicts (`E/answers`, `E/verdicts`). Rates, intervals and agreement
are derived when they are read, never stored.
"""

from .folders import Evaluation as Evaluation
from .verdicts import Item as Item
from .verdicts import Judge as Judge
from .verdicts import Verdict as Verdict
