"""STL-aug, the paper's second baseline: STL with answered seemingly toxic prompts (section 6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..data import Pair
from .stl import Stl


@dataclass(frozen=True)
class StlAug(Stl):
    """D_general ∪ D_safe ∪ D_seemingly, the last with compliant answers, each once.

    The paper says neither who wrote those answers nor how many there are: all that are given count.
    """

    needs: ClassVar[tuple[str, ...]] = ("general", "safe", "seemingly")

    def mix(self, sources: Mapping[str, Sequence[Pair]], seed: int) -> dict[str, list[Pair]]:
        """Return the pairs drawn from each source.

        Args:
            sources: pairs without empty ones, by the names in `needs`.
            seed: another seed, another draw.

        Returns:
            Pairs by source.
        """
        return {**super().mix(sources, seed), "seemingly": list(sources["seemingly"])}
