"""`trainer_state.json`: the Trainer writes it last, which makes it the mark of completeness."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .headers import read_json

NAME = "trainer_state.json"


@dataclass(frozen=True)
class Marker:
    """The contents of a checkpoint's `trainer_state.json`.

    Attributes:
        step: its `global_step`.
        max_steps: the last step of training; 0 if not given.
        save_steps: steps between two checkpoints; 0 if not given.
        mtime_ns: when the file was written, by the file system's clock.
    """

    step: int
    max_steps: int
    save_steps: int
    mtime_ns: int


def read_marker(folder: Path) -> Marker:
    """Return the marker of a checkpoint.

    Raises:
        Incomplete: if there is none, or it is cut short.
        UserError: if it is not a regular file.
    """  # ruff: ignore[docstring-extraneous-exception]
    path = folder / NAME
    state = read_json(path)
    step, last, every = (_count(state.get(k)) for k in ("global_step", "max_steps", "save_steps"))
    return Marker(step, last, every, path.stat().st_mtime_ns)


def _count(value: Any) -> int:
    """Return a non-negative whole number; 0 for anything else (`save_steps` may be a share)."""
    return value if isinstance(value, int) and value > 0 else 0
