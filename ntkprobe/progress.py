"""How far a long stage is: a bar on a terminal and in a notebook, a line now and then in a log."""

import io
import sys
import time
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

from .errors import one_line

SECONDS = 30.0
"""Between two lines of a stage in a log; a stage that takes less says nothing there."""


class Lines(tqdm):
    """A bar for where nobody looks on: whole lines on stderr, one every `SECONDS`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._said = time.monotonic()
        about = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} so far, {remaining} left"
        settings = {**settings, "bar_format": about + "{postfix}", "miniters": 1}
        own: dict[str, Any] = {"mininterval": SECONDS, "leave": False, "file": io.StringIO()}
        super().__init__(*args, **{**settings, **own})

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Name the stage, without tqdm's colon, which `bar_format` has."""
        self.set_description_str(desc, refresh)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print where the stage is, unless that was done a moment ago."""
        if msg is None and time.monotonic() - self._said >= SECONDS:
            self._said = time.monotonic()
            if sys.stderr is None:
                return
            print(one_line(self), file=sys.stderr, flush=True)


def progress(iterable: Any = None, **settings: Any) -> Any:
    """Return a bar over something, or one to be updated: tqdm's, or `Lines` in a log.

    Args:
        iterable: what is iterated over; None for a bar that `update` moves.
        settings: tqdm's, such as `total`, `desc` and `unit`, in the singular.
    """
    return bar_class()(iterable, **settings)


def bar_class() -> type[tqdm]:
    """Return tqdm's bar for a terminal or a notebook, else `Lines`."""
    if getattr(sys.stderr, "isatty", bool)():  # there is none in a process without a terminal
        return tqdm
    if "ipykernel" in sys.modules and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as notebook

        return notebook
    return Lines
