"""Many small products side by side."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import local

import numpy as np
import torch
from jaxtyping import Float
from threadpoolctl import ThreadpoolController
from torch import Tensor

_OWN = local()


def side_by_side(pieces: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Do pieces of work, on a CPU one per thread.

    Threads that each do whole products share nothing until the end; one product split over all of
    them, thousands of times, would wait for the slowest each time.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        for piece in pieces:
            piece()
        return
    torch.set_num_threads(1)
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            list(_pool(threads, os.getpid()).map(_do, pieces))
    finally:
        torch.set_num_threads(threads)


def multiply(
    left: Float[Tensor, "*#batch r c"],
    right: Float[Tensor, "*#batch c s"],
    out: Float[Tensor, "*#batch r s"] | None = None,
) -> Float[Tensor, "*#batch r s"]:
    """Return products of many small matrices, written into `out` where it is given.

    On a CPU by numpy, whose BLAS multiplies small matrices where they lie; torch's copies each of
    them first, which takes as long as multiplying ten rows by it.
    """
    if left.device.type != "cpu" or left.dtype not in (torch.float32, torch.float64):
        return torch.matmul(left, right, out=out)
    place = None if out is None else out.numpy()
    return torch.from_numpy(np.matmul(left.numpy(), right.numpy(), out=place))


def scratch(size: int, like: Tensor) -> Float[Tensor, " size"]:
    """Return room to write in, a CPU thread's own: fresh memory costs more than what it holds."""
    if like.device.type != "cpu":
        return like.new_empty(size)
    room: Tensor | None = getattr(_OWN, "room", None)
    if room is None or room.dtype != like.dtype or len(room) < size:
        room = _OWN.room = like.new_empty(size)
    return room[:size]


def _do(piece: Callable[[], None]) -> None:
    """Do one piece."""
    piece()


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    """Return what sets how many threads the libraries in this process use, found once."""
    return ThreadpoolController()


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of a process (a forked one has none of its parent's), made once.

    New threads would each time first set up what the library of matrix products keeps for them.
    """
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
