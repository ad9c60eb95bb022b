"""Safety-Tuned LLaMAs (Bianchi et al. 2023): normal pairs and a few refusals (paper A.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..data import Pair, draw


@dataclass(frozen=True)
class Stl:
    """D_general ∪ D_safe.

    Attributes:
        n_general: normal pairs to draw.
        n_safe: refusals to draw.
    """

    n_general: int = 20000
    n_safe: int = 1000

    needs: ClassVar[tuple[str, ...]] = ("general", "safe")

    def mix(self, sources: Mapping[str, Sequence[Pair]], seed: int) -> dict[str, list[Pair]]:
        """Return the pairs drawn from each source; of a source with too few, all.

        Args:
            sources: pairs without empty ones, by the names in `needs`.
            seed: another seed, another draw.

        Returns:
            Pairs by source.
        """
        numbers = {"general": self.n_general, "safe": self.n_safe}
        return {name: draw(sources[name], n, f"{seed}/{name}") for name, n in numbers.items()}
