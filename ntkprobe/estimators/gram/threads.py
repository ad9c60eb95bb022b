"""Many small products side by side."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

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
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)
