"""STL with the answered prompts that influence orders first, fewer than STL-aug adds.

On the embedded model, over-refusal fell further with 25 of 250 such pairs than with 25 drawn at
random, or with the 25 of the most similar words, and less far than with DCR
(`benchmarks/attribution_counterfactual.md`); nothing is known of other models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..data import Pair
from .stl import Stl


@dataclass(frozen=True)
class Influence(Stl):
    """D_general ∪ D_safe ∪ the first pairs of D_seemingly, in their given order.

    The order is that of `ntkprobe why --candidates`: those first whose step would have lowered
    log P(refuse) most, in an earlier run of STL.

    Attributes:
        n_seemingly: how many are added; None for a tenth of them, as was measured.
    """

    n_seemingly: int | None = None

    needs: ClassVar[tuple[str, ...]] = ("general", "safe", "seemingly")

    def mix(self, sources: Mapping[str, Sequence[Pair]], seed: int) -> dict[str, list[Pair]]:
        """Return the pairs drawn from each source.

        Args:
            sources: pairs without empty ones, by the names in `needs`.
            seed: another seed, another draw of normal pairs and refusals.

        Returns:
            Pairs by source.
        """
        ordered = sources["seemingly"]
        number = -(-len(ordered) // 10) if self.n_seemingly is None else self.n_seemingly
        return {**super().mix(sources, seed), "seemingly": list(ordered[:number])}
