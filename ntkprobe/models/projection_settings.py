"""Sizes of random projections; loads no torch, since options of a command are made of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from ..errors import UserError, count
from ..settings import Flag

SKETCH = "Sketch"
"""Heading of the options in `ntkprobe why --help`."""


@dataclass(frozen=True)
class ProjectionSettings:
    """Sizes of the projections.

    Attributes:
        side: p and q, for every matrix.
        parts: how many independent projections, 3 at least, to tell the error by.
        by_module: other sizes, for parameters whose name a regular expression finds; the last that
            does counts.
        seed: of the signs.
    """

    side: Annotated[
        int, Flag(panel=SKETCH, help="Rows and columns of a layer's projection, for a sketch.")
    ] = 8
    parts: Annotated[
        int, Flag(panel=SKETCH, help="Independent projections of a sketch, 3 at least.")
    ] = 8
    by_module: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that are none.

        Raises:
            UserError: saying which.
        """
        count("side", self.side)
        count("parts", self.parts, least=3)
        for pattern, side in self.by_module.items():
            count(f"the projection of {pattern}", side)
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"projection of {pattern!r}: no regular expression: {error}"
                ) from None

    def side_of(self, name: str) -> tuple[int, bool]:
        """Return the size for a parameter, and whether it was chosen for its module."""
        found = [side for pattern, side in self.by_module.items() if re.search(pattern, name)]
        return (found[-1], True) if found else (self.side, False)
