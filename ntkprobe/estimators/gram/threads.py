"""Work and products of small matrices divided over CPU threads, with limits on those of BLAS."""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from threading import Lock, local

import numpy as np
import torch
from jaxtyping import Float
from threadpoolctl import ThreadpoolController
from torch import Tensor

_BLAS_DTYPES = (torch.float32, torch.float64)
_WITH_SMALL_KERNELS = {"SkylakeX", "Cooperlake", "SapphireRapids"}  # of OpenBLAS
_OWN = local()


def side_by_side(pieces: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Do pieces of work, on a CPU one per thread.

    Threads that each do whole products share nothing until the end; one product split over all of
    them, thousands of times, would wait for the slowest each time.
    """
    if device.type != "cpu":
        for piece in pieces:
            piece()
        return
    with _LIBRARIES.one_each() as threads:
        list(_pool(threads, os.getpid()).map(_do, pieces))


class _Libraries:
    """How many threads torch and numpy's BLAS give a product: one while any caller is at work."""

    def __init__(self) -> None:
        self._lock, self._callers, self._threads = Lock(), 0, 1
        self._before = ExitStack()

    @contextmanager
    def one_each(self) -> Generator[int]:
        """Hold all at one thread; the last caller out puts back what the first one found.

        Yields:
            How many threads torch had.
        """
        with self._lock:
            if not self._callers:
                self._threads = torch.get_num_threads()
                self._before.enter_context(_found().limit(limits=1, user_api="blas"))
            self._callers += 1
            torch.set_num_threads(1)
        try:
            yield self._threads
        finally:
            with self._lock:
                self._callers -= 1
                torch.set_num_threads(self._threads)
                if not self._callers:
                    self._before.close()


_LIBRARIES = _Libraries()


def multiply(
    left: Float[Tensor, "*#batch r c"],
    right: Float[Tensor, "*#batch c s"],
    out: Float[Tensor, "*#batch r s"] | None = None,
) -> Float[Tensor, "*#batch r s"]:
    """Return products of many small matrices, written into `out` where it is given.

    Where numpy's BLAS multiplies small matrices where they lie, by that: torch's copies each of
    them first, which is dear where each is multiplied by a few rows only.
    """
    if in_place(left):
        place = None if out is None else out.numpy()
        return torch.from_numpy(np.matmul(left.numpy(), right.numpy(), out=place))
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    flat = (x.expand(*batch, *x.shape[-2:]).flatten(0, -3) for x in (left, right))
    found = torch.bmm(*flat, out=None if out is None else out.flatten(0, -3))
    return found.unflatten(0, batch)


def in_place(like: Tensor) -> bool:
    """Return whether small matrices such as these are multiplied where they lie."""
    return like.device.type == "cpu" and like.dtype in _BLAS_DTYPES and small_kernels()


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
def small_kernels() -> bool:
    """Return whether numpy's BLAS has kernels for small matrices: OpenBLAS where AVX-512 is."""
    return any(one.get("architecture") in _WITH_SMALL_KERNELS for one in _found().info())


@lru_cache(maxsize=1)
def _found() -> ThreadpoolController:
    """Return what sets how many threads the libraries in this process use, found once."""
    return ThreadpoolController()


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of a process (a forked one has none of its parent's), made once.

    New threads would each time first set up what the library of matrix products keeps for them.
    """
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
