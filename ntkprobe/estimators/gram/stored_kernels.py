"""Kernels while they are summed up: that of one model as its half, since it is symmetric.

Split by layer, a model of 30 blocks has 92 kernels of `n² k²` numbers in float64 at one time.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from ...kernel import Blocks

_Tile = Float64[Tensor, "some k others h"]


@dataclass(frozen=True)
class RectangularKernel:
    """A kernel between two models, stored as it is."""

    blocks: Blocks

    def add(self, rows: slice, columns: slice, tile: _Tile) -> None:
        """Add the blocks of some rows and columns."""
        self.blocks[rows, :, columns] += tile

    def whole(self) -> Blocks:
        """Return the kernel."""
        return self.blocks


@dataclass(frozen=True)
class SymmetricKernel:
    """A kernel of one model, stored as the blocks of each pair of prompts a ≤ b.

    Attributes:
        pairs: the blocks K(a,b), by `place`.
        place: the number of each pair in `pairs`; b, a has that of a, b.
    """

    pairs: Float64[Tensor, "pairs k k"]
    place: Int[Tensor, "n n"]

    def add(self, rows: slice, columns: slice, tile: _Tile) -> None:
        """Add the blocks of some rows and columns; of pairs b < a there is nothing to add."""
        place = self.place[rows, columns]
        first, second = (torch.arange(len(self.place))[some] for some in (rows, columns))
        ordered = first[:, None] <= second
        self.pairs[place[ordered]] += tile.transpose(1, 2)[ordered]

    def whole(self) -> Blocks:
        """Return the kernel."""
        found = self.pairs[self.place]
        n = len(self.place)
        below = torch.ones(n, n, dtype=torch.bool).tril(-1)
        found[below] = found[below].mT
        return found.transpose(1, 2)


StoredKernel = SymmetricKernel | RectangularKernel
"""The sum of one group of parameters."""


def symmetric(n: int, k: int) -> Callable[[], SymmetricKernel]:
    """Return what makes empty kernels of n prompts with k values each."""
    a, b = torch.triu_indices(n, n)
    place = torch.zeros(n, n, dtype=torch.long)
    place[a, b] = place[b, a] = torch.arange(len(a))
    return lambda: SymmetricKernel(torch.zeros(len(a), k, k, dtype=torch.float64), place)


def rectangular(n: int, k: int, m: int, h: int) -> Callable[[], RectangularKernel]:
    """Return what makes empty kernels of n observed and m updated prompts."""
    return lambda: RectangularKernel(torch.zeros(n, k, m, h, dtype=torch.float64))


@dataclass(frozen=True)
class KernelsByGroup(Mapping[Hashable, Blocks]):
    """The kernel of each group of parameters, made whole when it is taken, and not kept so.

    Attributes:
        stored: by group.
        rows: for each prompt as given, its row in what is stored.
        columns: the same of the columns.
    """

    stored: Mapping[Hashable, StoredKernel]
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " m"]

    def __getitem__(self, group: Hashable) -> Blocks:
        """Return the kernel of a group, with prompts as they were given."""
        return self.stored[group].whole()[self.rows][:, :, self.columns]

    def __iter__(self) -> Iterator[Hashable]:
        """Return the groups."""
        return iter(self.stored)

    def __len__(self) -> int:
        """Return how many groups there are."""
        return len(self.stored)
