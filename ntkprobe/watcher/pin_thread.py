"""Pins the checkpoints of a run that still trains, in a thread, before rotation deletes them.

Measuring takes longer than saving, now and then; hard links cost nothing, so that what was complete
once can be measured whenever its turn comes.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..checkpoints import Checkpoint, Incomplete, pinned
from ..errors import UserError
from .scan import CheckpointScanner, ScannedCheckpoint


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
