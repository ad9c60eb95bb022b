"""Many small products side by side."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch


def side_by_side(work: Callable[[int], None], items: Iterable[int], device: torch.device) -> None:
    """Do the work of every item, on a CPU one per thread.

    Threads that each do whole products share nothing until the end; one product split over all of
    them, thousands of times, would wait for the slowest each time.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        for item in items:
            work(item)
        return
    torch.set_num_threads(1)
    try:
        list(_pool(threads, os.getpid()).map(work, items))
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of a process (a forked one has none of its parent's), made once.

    New threads would each time first set up what the library of matrix products keeps for them.
    """
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
