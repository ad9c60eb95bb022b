"""Several ways of doing the same thing, timed in turn, so that a busy hour meets all of them."""

from collections.abc import Callable
from statistics import median
from time import process_time


def interleaved(ways: dict[str, Callable[[], object]], times: int = 3) -> dict[str, float]:
    """Return the median processor seconds of each way, all run in turn after a first time.

    Args:
        ways: by name.
        times: how often each is timed, after a first time that does not count.

    Returns:
        Seconds by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(times + 1):
        for name, way in ways.items():
            start = process_time()
            way()
            seconds[name].append(process_time() - start)
    return {name: median(each[1:]) for name, each in seconds.items()}
