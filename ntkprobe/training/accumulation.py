"""One optimiser step in several batches, whose pairs are those of one large batch.

The features of all batches are computed first, without a graph; then each batch, with its graph,
is paired with the features of all others. As the loss sees the batches only through their features,
the gradients add up to the large batch's (Gao et al. 2021, arXiv:2101.06983, section 3.2).
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from .data import IGNORED

Features = tuple[Tensor, Tensor]
"""Features [prompts, width] and groups [prompts] of a batch, over all processes."""


class Window:
    """The batches of one optimiser step; of one batch alone it adds nothing and costs nothing."""

    def __init__(self, batches: Sequence[dict[str, Any]]) -> None:
        self.batches = batches
        self.position = 0
        self._known: list[Features] = []
        self._seeds: list[int] = []

    @property
    def used_up(self) -> bool:
        """Whether every batch has had its turn."""
        return self.position == len(self.batches)

    @property
    def predicted(self) -> Tensor:
        """The number of tokens with a label in all batches of this process."""
        return sum((batch["labels"][:, 1:] != IGNORED).sum() for batch in self.batches)

    def look_ahead(self, features: Callable[[dict[str, Any]], Features]) -> None:
        """Compute the features of all batches, before the first of several has its turn.

        Args:
            features: what a batch gives.
        """
        if len(self.batches) == 1 or self._known:
            return
        self._seeds = torch.randint(2**62, (len(self.batches),)).tolist()
        with torch.no_grad():
            for batch, seed in zip(self.batches, self._seeds, strict=True):
                with _seeded(seed):
                    self._known.append(features(batch))
        torch.clear_autocast_cache()  # else its copies of the weights have no graph from now on

    @contextmanager
    def turn(self) -> Generator[None]:
        """Give the next batch its turn, with the dropout that it was looked at with.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            if self._known:
                stack.enter_context(_seeded(self._seeds[self.position]))
            yield
        self.position += 1

    def joined(self, features: Tensor, groups: Tensor) -> Features:
        """Return the rows of all batches, of which only this batch's carry gradient.

        That is multiplied by the number of batches, because the Trainer divides the loss by it.

        Args:
            features: of the batch whose turn was last [prompts, width].
            groups: of the same [prompts].

        Returns:
            Features and groups of all prompts, first batch first.
        """
        if not self._known:
            return features, groups
        mine = features + (len(self._known) - 1) * (features - features.detach())
        rows = [known for known, _ in self._known]
        rows[self.position - 1] = mine
        return torch.cat(rows), torch.cat([sides for _, sides in self._known])


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Draw random numbers from a stream of the block's own, here and on the GPU in use.

    Args:
        seed: of the stream.

    Yields:
        Nothing.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
