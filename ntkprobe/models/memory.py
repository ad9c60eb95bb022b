"""How much memory is free, what gives some back, and fewer prompts where it runs out."""

import ctypes
import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

import psutil
import torch

T = TypeVar("T")
_log = logging.getLogger(__name__)


def free_bytes(device: torch.device) -> int:
    """Return how many bytes can be had on a device now; what torch keeps for itself counts."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return int(psutil.virtual_memory().available)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system; what glibc keeps of it counts as in use."""
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that there was no memory left, on a GPU or on a CPU."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or "can't allocate memory" in str(error)


@contextmanager
def as_out_of_memory() -> Generator[None]:
    """Let memory that runs out inside the `with` block be one kind of error, wherever it was.

    A CPU's allocator raises a plain `RuntimeError`, as does a model that refuses its input.

    Raises:
        OutOfMemoryError: if memory ran out, on a GPU or on a CPU.
        RuntimeError: what else went wrong, as it was.
    """
    try:
        yield
    except MemoryError as error:
        raise torch.OutOfMemoryError(str(error)) from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not ran_out(error):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def halving(measure: Callable[[int], T], size: int) -> tuple[T, int]:
    """Return what is measured with as many prompts at a time as memory allows.

    Args:
        measure: measures with so many prompts at a time, the same whatever their number.
        size: the first number; halved each time that memory runs out.

    Returns:
        What was measured, and the number that fitted.

    Raises:
        OutOfMemoryError: if one prompt alone does not fit, on a GPU or on a CPU.
    """
    while True:
        try:
            with as_out_of_memory():
                return measure(size), size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        _log.warning("out of memory with %d prompts at a time: halving", size)
        size //= 2
        torch.cuda.empty_cache()
