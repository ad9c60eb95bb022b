"""Scans a run for checkpoints: which of them can be measured now?

Pins the checkpoints of a run that still trains, in a thread, before rotation deletes them.

Measuring takes longer than saving, now and then; hard links cost nothing, so that what was complete
once can be measured whenever its turn comes.
"""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..checkpoints import (
    Checkpoint,
    FileStamp,
    Incomplete,
    Marker,
    Readiness,
    find_checkpoints,
    pinned,
    read_marker,
    readiness,
)
from ..errors import UserError
from .choices import Choice

SETTLE = 30.0  # seconds without a change until a checkpoint without a marker counts as whole
LONG_AGO = 3600.0  # more than file servers' clocks differ


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


class HeldPin:
    """One pin, until it is released.

    Args:
        scanned: the checkpoint to hold.
        pins: where pins live.
    """

    def __init__(self, scanned: ScannedCheckpoint, pins: Path) -> None:
        self._stack = ExitStack()
        pin = pinned(scanned.checkpoint, scanned.verdict, pins, copy=True)
        self.path = self._stack.enter_context(pin)

    def release(self) -> None:
        """Remove the pin; once is enough."""
        self._stack.close()


class PinThread:
    """Looks at a run every `interval` seconds while the block lasts, and pins what is ready.

    Args:
        scanner: finds the checkpoints of the run.
        pins: where pins live.
        interval: seconds between two looks.
        is_done: whether a checkpoint needs no measuring any more.
    """

    def __init__(
        self,
        scanner: CheckpointScanner,
        pins: Path,
        interval: float,
        is_done: Callable[[ScannedCheckpoint], bool],
    ) -> None:
        self.scanner = scanner
        self.missed: set[Checkpoint] = set()
        self._pins = pins
        self._interval = interval
        self._is_done = is_done
        self._held: dict[tuple[Checkpoint, Any], ScannedCheckpoint] = {}
        self._seen: list[ScannedCheckpoint] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PinThread":
        """Return self, having looked once; from now on the thread looks."""
        self._round()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop looking and remove all pins."""
        self._stop.set()
        self._thread.join()
        for scanned in self._held.values():
            _release(scanned)

    def look(self) -> list[ScannedCheckpoint]:
        """Return every checkpoint that is there or held, by step; raise what the thread raised."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            held = {scanned.checkpoint for scanned in self._held.values()}
            others = [scanned for scanned in self._seen if scanned.checkpoint not in held]
            return sorted([*self._held.values(), *others], key=lambda s: s.checkpoint)

    def _watch(self) -> None:
        """Scan every `interval` seconds until the context exits."""
        while not self._stop.wait(self._interval):
            try:
                self._round()
            except Exception as error:
                with self._lock:
                    self._failure = error
                return

    def _round(self) -> None:
        """Look once: pin what is ready, let go of what is done, note what vanished unread."""
        seen = self.scanner.look()
        for scanned in seen:
            key = (scanned.checkpoint, scanned.verdict.weights)
            if scanned.is_ready and scanned.wanted and key not in self._held:
                if not self._is_done(scanned):
                    self._hold(key, scanned)
        with self._lock:
            for key, scanned in list(self._held.items()):
                if self._is_done(scanned):
                    _release(self._held.pop(key))
            gone = {s.checkpoint: s for s in self._seen if s.wanted and not self._is_done(s)}
            for checkpoint in {s.checkpoint for s in seen} | {c for c, _ in self._held}:
                gone.pop(checkpoint, None)
            self.missed |= {c for c, s in gone.items() if s.verdict.state != "refused"}
            self._seen = seen

    def _hold(self, key: tuple[Checkpoint, Any], scanned: ScannedCheckpoint) -> None:
        """Pin a checkpoint, unless it changes meanwhile: then the next round judges it."""
        try:
            hold = HeldPin(scanned, self._pins)
        except (Incomplete, UserError):
            return
        with self._lock:
            self._held[key] = replace(scanned, hold=hold)


def _release(scanned: ScannedCheckpoint) -> None:
    """Remove a checkpoint's pin; that its weights were touched does not matter any more."""
    try:
        scanned.hold.release()
    except Incomplete:
        return
