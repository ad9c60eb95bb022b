"""WildGuard as judge: is the answer harmful?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..verdicts import SAFE, UNSAFE, Item, Verdict
from .wildguard import WildguardModel


@dataclass(frozen=True)
class WildguardHarm(WildguardModel):
    """Reads the line `Harmful response` of WildGuard's reply; off its format is undetermined."""

    asks: ClassVar[str] = "safety"

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Return a verdict for each item, with the guard's reply as `detail`."""
        return self.verdicts(items, "Harmful response", {"yes": UNSAFE, "no": SAFE})
