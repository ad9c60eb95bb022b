"""Scans a run for checkpoints: which of them can be measured now?"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoints import (
    Checkpoint,
    FileStamp,
    Marker,
    Readiness,
    find_checkpoints,
    read_marker,
    readiness,
)
from ..checkpoints.headers import Incomplete
from ..errors import UserError
from .choices import Choice

SETTLE = 30.0  # seconds without a change until a checkpoint without a marker counts as whole
LONG_AGO = 3600.0  # more than file servers' clocks differ
WHOLE = ("ready", "unmarked")
"""States that are measured: an unmarked checkpoint once it has not changed for a while."""


@dataclass(frozen=True)
class ScannedCheckpoint:
    """A checkpoint and the verdict on it.

    Attributes:
        checkpoint: its step and folder.
        verdict: whether it is whole.
        wanted: whether this worker is to measure it.
        hold: a pin that is taken already, with `path` and `release()`.
    """

    checkpoint: Checkpoint
    verdict: Readiness
    wanted: bool = True
    hold: Any = None

    @property
    def is_ready(self) -> bool:
        """Whether it can be measured now."""
        return self.verdict.state == "ready"


@dataclass
class CheckpointScanner:
    """Judges the checkpoints of a run.

    Attributes:
        run: its folder, which need not be there yet.
        choice: which checkpoints are wanted.
        settle: seconds without a change that stand in for a missing marker.
        clock: seconds that only grow; ours, since file servers' clocks may differ.
    """

    run: Path
    choice: Choice = field(default_factory=Choice)
    settle: float = SETTLE
    clock: Callable[[], float] = time.monotonic
    _since: dict[Path, tuple[tuple[FileStamp, ...], float]] = field(default_factory=dict)

    def look(self) -> list[ScannedCheckpoint]:
        """Return every checkpoint with the verdict on it, by step."""
        found = find_checkpoints(self.run) if self.run.is_dir() else []
        return [
            ScannedCheckpoint(c, self._settled(c, readiness(c.path)), self.choice.wants(c, place))
            for place, c in enumerate(found, start=1)
        ]

    def _settled(self, checkpoint: Checkpoint, verdict: Readiness) -> Readiness:
        """Return the verdict, `ready` where an unmarked checkpoint has not changed for long."""
        if verdict.state != "unmarked":
            return verdict
        now = self.clock()
        stamps, since = self._since.get(checkpoint.path, (None, now))
        if stamps != verdict.weights:
            since = now
        self._since[checkpoint.path] = (verdict.weights, since)
        if now - since >= self.settle or _is_old(verdict.weights):
            return replace(verdict, state="ready")
        return verdict

    def sees_any(self) -> bool:
        """Return whether the run holds any checkpoint, whole or not, wanted or not."""
        return bool(find_checkpoints(self.run))

    @property
    def wants_base(self) -> bool:
        """Whether the base counts as step 0: not if the run has that step, or is one checkpoint."""
        found = find_checkpoints(self.run) if self.run.is_dir() else []
        alone = [c.path for c in found] == [self.run]
        taken = alone or any(c.step == 0 for c in found)
        return not taken and self.choice.wants(Checkpoint(0, self.run), 0)

    def end(self) -> int | None:
        """Return the step at which the run says that it ends; None where it does not say."""
        ends = [marker.max_steps for marker in self._markers() if marker.max_steps]
        return ends[-1] if ends else None

    def _markers(self) -> list[Marker]:
        """Return the markers of the run's checkpoints, by step."""
        markers = []
        for checkpoint in find_checkpoints(self.run) if self.run.is_dir() else []:
            try:
                markers.append(read_marker(checkpoint.path))
            except (Incomplete, UserError, OSError):
                continue
        return markers


def _is_old(weights: tuple[FileStamp, ...]) -> bool:
    """Return whether the last write was so long ago that no difference of clocks matters."""
    return bool(weights) and time.time() - max(w.mtime_ns for w in weights) / 1e9 > LONG_AGO
