"""Order of the prompts in the contrastive stage: whole batches, seeded by (seed, epoch) alone."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Draws one epoch as a whole number of batches, so that no batch is too small to hold pairs.

    Balanced: with replacement, each label with the same probability (the paper's weighted sampler).
    Natural: a permutation of the data, its beginning repeated to fill the last batch.
    The order depends on the seed and the epoch only: not on the processes, nor on what ran before,
    so a resumed run continues the order of the uninterrupted one.
    """

    def __init__(
        self, labels: Sequence[int], batch_size: int, *, balanced: bool = True, seed: int = 0
    ) -> None:
        """Prepare to draw.

        Args:
            labels: the label of each example.
            batch_size: the size of a batch over all processes.
            balanced: draw labels equally often, else as they come.
            seed: of the order.
        """
        self.labels = torch.as_tensor(labels)
        self.batches = -(-len(labels) // batch_size)
        self.batch_size = batch_size
        self.balanced = balanced
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; accelerate's data loaders call this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = self._balanced(draw) if self.balanced else self._natural(draw)
        yield from order.tolist()

    def _balanced(self, draw: torch.Generator) -> torch.Tensor:
        """Return indices drawn with weight 1 / (number of examples of that label)."""
        _, which, count = self.labels.unique(return_inverse=True, return_counts=True)
        return torch.multinomial(
            1.0 / count[which].double(), len(self), replacement=True, generator=draw
        )

    def _natural(self, draw: torch.Generator) -> torch.Tensor:
        """Return a permutation, continued from its beginning up to whole batches."""
        order = torch.randperm(len(self.labels), generator=draw)
        return order.repeat(-(-len(self) // len(order)))[: len(self)]
