"""Something else in the place of a model's blocks, for a while."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


class StandIn(nn.Module):
    """Stands in a block's place in the model's list: its attributes, another forward.

    In its place and not hooked to it: the block's own hooks (a steering vector's, a device map's)
    then run where the block itself runs, and nowhere else.
    """

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self._instead = (block, forward)  # in a tuple, which registers no child
        self.training = block.training

    def __getattr__(self, name: str) -> Any:
        """Return the block's own attribute."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_instead"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what stands for the block's output."""
        return self._instead[1](*args, **kwargs)


@contextmanager
def standing_in(
    blocks: nn.ModuleList, forward: Callable[[int], Callable[..., Any]]
) -> Generator[None]:
    """Replace block ℓ of the list, from 0, by `forward(ℓ)`."""
    originals = list(blocks)
    try:
        for index, block in enumerate(originals):
            blocks[index] = StandIn(block, forward(index))
        yield
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block
