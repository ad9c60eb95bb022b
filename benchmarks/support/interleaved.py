"""Several ways of doing the same thing, timed in turn, so that a busy hour meets all of them."""

from collections.abc import Callable
from statistics import median
from time import process_time


def interleaved(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median processor seconds of each way, all run in turn after a first time.

    Args:
        ways: by name.

    Returns:
        Seconds by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(4):
        for name, way in ways.items():
            start = process_time()
            way()
            seconds[name].append(process_time() - start)
    return {name: median(each[1:]) for name, each in seconds.items()}
