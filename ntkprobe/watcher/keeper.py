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
from .scout import Scout, Sighting


class Hold:
    """One pin, until it is released.

    Args:
        sighting: the checkpoint to hold.
        pins: where pins live.
    """

    def __init__(self, sighting: Sighting, pins: Path) -> None:
        self._stack = ExitStack()
        pin = pinned(sighting.checkpoint, sighting.verdict, pins, copy=True)
        self.path = self._stack.enter_context(pin)

    def release(self) -> None:
        """Remove the pin; once is enough."""
        self._stack.close()


class Keeper:
    """Looks at a run every `interval` seconds while the block lasts, and pins what is ready.

    Args:
        scout: what looks.
        pins: where pins live.
        interval: seconds between two looks.
        is_done: whether a sighting needs no measuring any more.
    """

    def __init__(
        self, scout: Scout, pins: Path, interval: float, is_done: Callable[[Sighting], bool]
    ) -> None:
        self.scout = scout
        self.missed: set[Checkpoint] = set()
        self._pins = pins
        self._interval = interval
        self._is_done = is_done
        self._held: dict[tuple[Checkpoint, Any], Sighting] = {}
        self._seen: list[Sighting] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Keeper":
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
        for sighting in self._held.values():
            _release(sighting)

    def look(self) -> list[Sighting]:
        """Return every checkpoint that is there or held, by step; raise what the thread raised."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            held = {sighting.checkpoint for sighting in self._held.values()}
            others = [sighting for sighting in self._seen if sighting.checkpoint not in held]
            return sorted([*self._held.values(), *others], key=lambda s: s.checkpoint)

    def _watch(self) -> None:
        """Look until told to stop."""
        while not self._stop.wait(self._interval):
            try:
                self._round()
            except Exception as error:
                with self._lock:
                    self._failure = error
                return

    def _round(self) -> None:
        """Look once: pin what is ready, let go of what is done, note what vanished unread."""
        seen = self.scout.look()
        for sighting in seen:
            key = (sighting.checkpoint, sighting.verdict.weights)
            if sighting.is_ready and sighting.wanted and key not in self._held:
                if not self._is_done(sighting):
                    self._hold(key, sighting)
        with self._lock:
            for key, sighting in list(self._held.items()):
                if self._is_done(sighting):
                    _release(self._held.pop(key))
            gone = {s.checkpoint: s for s in self._seen if s.wanted and not self._is_done(s)}
            for checkpoint in {s.checkpoint for s in seen} | {c for c, _ in self._held}:
                gone.pop(checkpoint, None)
            self.missed |= {c for c, s in gone.items() if s.verdict.state != "refused"}
            self._seen = seen

    def _hold(self, key: tuple[Checkpoint, Any], sighting: Sighting) -> None:
        """Pin a checkpoint, unless it changes under our hands: then the next round judges it."""
        try:
            hold = Hold(sighting, self._pins)
        except (Incomplete, UserError):
            return
        with self._lock:
            self._held[key] = replace(sighting, hold=hold)


def _release(sighting: Sighting) -> None:
    """Remove a sighting's pin; that its weights were touched does not matter any more."""
    try:
        sighting.hold.release()
    except Incomplete:
        return
