"""Context managers that replace parts of a model, and put the originals back when they exit."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


class ReplacedBlock(nn.Module):
    """A block with another forward function; every other attribute is the block's own.

    It takes the block's place in the model's list instead of hooking the block, so that the block's
    own hooks (of a steering vector, of a device map) run exactly when the block itself runs.
    """

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self._replaced = (block, forward)  # a tuple: it registers no child module
        self.training = block.training

    def __getattr__(self, name: str) -> Any:
        """Return the block's attribute."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_replaced"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the other forward function returns."""
        return self._replaced[1](*args, **kwargs)


@contextmanager
def replace_blocks(
    blocks: nn.ModuleList, forward: Callable[[int], Callable[..., Any]]
) -> Generator[None]:
    """Replace the forward function of block i, counted from 0, by `forward(i)`."""
    originals = list(blocks)
    try:
        for index, block in enumerate(originals):
            blocks[index] = ReplacedBlock(block, forward(index))
        yield
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block


@contextmanager
def replace_module(model: nn.Module, module: nn.Module, replacement: nn.Module) -> Generator[None]:
    """Replace a module wherever the model holds it."""
    with ExitStack() as stack:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if child is module:
                    stack.enter_context(replace_attributes(parent, **{name: replacement}))
        yield


@contextmanager
def replace_attributes(holder: nn.Module, **values: Any) -> Generator[None]:
    """Set attributes of a module to other values."""
    before = {name: getattr(holder, name) for name in values}
    try:
        for name, value in values.items():
            setattr(holder, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(holder, name, value)
