"""Many small products side by side."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import local

import torch
from jaxtyping import Float
from torch import Tensor

_OWN = local()


def side_by_side(pieces: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Do pieces of work, on a CPU one per thread.

    Threads that each do whole products share nothing until the end; one product split over all of
    them, thousands of times, would wait for the slowest each time.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        for piece in pieces:
            piece()
        return
    torch.set_num_threads(1)
    try:
        list(_pool(threads, os.getpid()).map(_do, pieces))
    finally:
        torch.set_num_threads(threads)


def scratch(size: int, like: Tensor) -> Float[Tensor, " size"]:
    """Return room to write in, a CPU thread's own: fresh memory costs more than what it holds."""
    if like.device.type != "cpu":
        return like.new_empty(size)
    room: Tensor | None = getattr(_OWN, "room", None)
    if room is None or room.dtype != like.dtype or len(room) < size:
        room = _OWN.room = like.new_empty(size)
    return room


def _do(piece: Callable[[], None]) -> None:
    """Do one piece."""
    piece()


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of a process (a forked one has none of its parent's), made once.

    New threads would each time first set up what the library of matrix products keeps for them.
    """
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
