"""Which training pairs made a model refuse a prompt: signed shares of what training did to it.

Eq. 2 for all pairs of a training set: the change of log P(refuse) of every observed prompt by a
step on each pair, summed over the run with the run's learning rates. `attribution` is the place to
begin; `products` is the exact form, `index` the estimated one.
"""

from typing import TYPE_CHECKING

from ..lazy_imports import names_of

if TYPE_CHECKING:
    from .attribution import attribute as attribute
    from .candidates import rank_candidates as rank_candidates
    from .result import Attribution as Attribution
    from .settings import AttributionSettings as AttributionSettings

_HOMES = {
    "Attribution": "result",
    "AttributionSettings": "settings",
    "attribute": "attribution",
    "rank_candidates": "candidates",
}
__all__ = sorted(_HOMES)

__getattr__ = names_of(__name__, _HOMES)
