"""Refusal triggers with compliant answers in place of general data (Xue et al., arXiv 2603.11388).

A trigger is the harmless part of a harmful prompt, which training on refusals associates with
refusal. Here answered triggers are the benign part of safety SFT.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..data import Pair, draw


@dataclass(frozen=True)
class RefusalTrigger:
    """D_safe and as many answered triggers.

    How many the authors mixed is not in what is published; 1:1 is our reading. There are fewer
    different triggers than harmful prompts, so each is taken about equally often.

    Attributes:
        n_safe: refusals to draw.
        n_triggers: answered triggers; None for as many as refusals are drawn.
    """

    n_safe: int = 1000
    n_triggers: int | None = None

    needs: ClassVar[tuple[str, ...]] = ("triggers", "safe")

    def mix(self, sources: Mapping[str, Sequence[Pair]], seed: int) -> dict[str, list[Pair]]:
        """Return the pairs of both sources.

        Args:
            sources: pairs without empty ones, by the names in `needs`.
            seed: another seed, another draw.

        Returns:
            Pairs by source.
        """
        safe = draw(sources["safe"], self.n_safe, f"{seed}/safe")
        number = len(safe) if self.n_triggers is None else self.n_triggers
        return {"triggers": _rounds(sources["triggers"], number, f"{seed}/triggers"), "safe": safe}


def _rounds(pairs: Sequence[Pair], number: int, seed: str) -> list[Pair]:
    """Return `number` pairs: all of them as often as they fit in, and a draw for what is left."""
    whole, left = divmod(number, len(pairs))
    return [*pairs] * whole + draw(pairs, left, seed)
