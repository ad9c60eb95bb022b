"""The loop over a run's checkpoints: look, measure what is ready, say what happened, look again."""

import errno
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from ..checkpoints import Checkpoint, Incomplete
from ..errors import UserError, one_line
from ..measurement.verification import WrongMeasurement
from ..progress import progress
from .choices import Following
from .measure import BASE_STEP, CheckpointMeasurer, Unfit
from .pin_thread import PinThread
from .reporting import Outcome, Sinks
from .scan import CheckpointScanner, ScannedCheckpoint
from .training_record import differences_from_training

TRIES = 3
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class MeasuringLoop:
    """Measures one run, as far as it is there.

    Args:
        measurer: loads and measures a checkpoint.
        scanner: finds the checkpoints of the run; None where there is only the base to measure.
        following: how to wait for more; None for a run that has ended.
        sinks: where to show what was measured.
    """

    def __init__(
        self,
        measurer: CheckpointMeasurer,
        scanner: CheckpointScanner | None,
        following: Following | None = None,
        sinks: Sinks | None = None,
    ) -> None:
        self.measurer = measurer
        self.scanner = scanner
        self.following = following
        self.sinks = sinks
        self.folder = measurer.recorder.folder
        self.outcome = Outcome(self.folder.path)
        self._settled: dict[Checkpoint, Any] = {}  # the weights measured, or given up on
        self._tries: dict[Checkpoint, int] = {}
        self._reported: dict[Checkpoint, str] = {}
        self._prepared = False
        self._bar: Any = None

    def run(self) -> None:
        """Measure everything there is, and with `following` what comes until a rule says stop.

        Raises:
            UserError: if nothing could be measured, and why.
        """  # ruff: ignore[docstring-extraneous-exception]
        with progress(total=0, desc="measuring", unit="checkpoint") as self._bar:
            try:
                self._measure_all()
                self.measurer.check.compare_latest()
            except WrongMeasurement as why:
                self._quarantine_unverified(str(why))
            if self.outcome.new:
                self._note_skipped()
        self.outcome.conclude()

    def _measure_all(self) -> None:
        """Measure everything there is, and wait for more if asked to."""
        if self.scanner is None:
            self._begin(None, None)
            return
        if self.following is None:
            while self._look_once(self.scanner, self.scanner.look()):
                time.sleep(1)
        else:
            self._follow(self.scanner, self.following)
        self._give_up_on_the_rest(self.scanner)

    def _quarantine_unverified(self, reason: str) -> None:
        """Set aside what was measured since the last comparison that passed."""
        for step in self.measurer.check.unchecked:
            self.folder.set_aside(step, self.measurer.recorder.settings)
            self.folder.note("failed", step=step, reason=reason)
            self.outcome.failed[step] = reason
            if step in self.outcome.new:
                self.outcome.new.remove(step)

    def _follow(self, scanner: CheckpointScanner, following: Following) -> None:
        """Measure what becomes ready until a rule says stop."""
        last_news = time.monotonic()
        interval = following.poll_interval
        with PinThread(scanner, self.folder.pins, interval, self._is_settled) as pins:
            while True:
                before = len(self.outcome.new) + len(self.outcome.known)
                seen = pins.look()
                self._look_once(scanner, seen)
                if len(self.outcome.new) + len(self.outcome.known) > before:
                    last_news = time.monotonic()
                    continue  # measuring takes long: look again at once
                idle = time.monotonic() - last_news
                if self._is_over(scanner, following, seen) or idle > following.patience:
                    break
                time.sleep(interval)
            for checkpoint in sorted(pins.missed - set(self._settled)):
                self.folder.note("missed", step=checkpoint.step)
                self.outcome.failed[checkpoint.step] = "deleted before it could be pinned"

    def _is_over(
        self, scanner: CheckpointScanner, following: Following, seen: list[ScannedCheckpoint]
    ) -> bool:
        """Return whether the last step is there, and measured unless it is another worker's."""
        ends = [end for end in (scanner.end(), following.until_step) if end is not None]
        done = [checkpoint.step for checkpoint in self._settled]
        done += [s.checkpoint.step for s in seen if s.is_ready and not s.wanted]
        done += [s.checkpoint.step for s in seen if s.verdict.state == "refused"]
        return bool(ends) and bool(done) and max(done) >= min(ends)

    def _look_once(self, scanner: CheckpointScanner, everything: list[ScannedCheckpoint]) -> bool:
        """Measure what is ready now.

        Args:
            scanner: what looked.
            everything: what it saw.

        Returns:
            Whether something else may become ready soon by itself.
        """
        for first in [s for s in everything if s.is_ready and not self._is_settled(s)]:
            try:
                self._begin(scanner, first)
                break
            except Incomplete:  # the first checkpoint changed while it was read: judge it again
                return True
            except Unfit as why:  # the next one may do
                if first.wanted:
                    self._fail(first.checkpoint, str(why), first)
        wanted = [s for s in everything if s.wanted]
        todo = [s for s in wanted if s.is_ready and not self._is_settled(s)]
        for scanned in wanted:
            if not scanned.is_ready:
                self._report_not_ready(scanned)
        self._bar.total += len(todo)
        for scanned in todo:
            self._bar.set_postfix_str(f"step {scanned.checkpoint.step}")
            self._attempt(
                scanned.checkpoint, partial(self.measurer.of_checkpoint, scanned), scanned
            )
            self._bar.update()
        waiting = [s for s in wanted if s.is_ready and not self._is_settled(s)]
        return bool(waiting) or any(s.verdict.state == "unmarked" for s in wanted)

    def _begin(self, scanner: CheckpointScanner | None, first: ScannedCheckpoint | None) -> None:
        """Before the first measurement: settle base, tokenizer and settings; measure the base."""
        if self._prepared:
            return
        models = self.measurer.models
        if first is not None and first.verdict.kind == "adapter":
            models.learn_base(first.checkpoint.path)
        self.measurer.prepare(first)
        self._prepared = True
        recorder = self.measurer.recorder
        lines = [self.measurer.describe(), *recorder.remarks()]
        if scanner is not None:
            lines += differences_from_training(scanner.run, recorder.encoded.template)
        for line in lines:
            print(one_line(line), file=sys.stderr)
        wanted = self.measurer.measures_base and (scanner is None or scanner.wants_base)
        if models.name is None or not wanted:
            return
        self._bar.total += 1
        self._bar.set_postfix_str("the base, step 0")
        self._attempt(Checkpoint(BASE_STEP, self.folder.path), self.measurer.of_base, None)
        self._bar.update()

    def _attempt(
        self,
        checkpoint: Checkpoint,
        measure: Callable[[], list[str]],
        scanned: ScannedCheckpoint | None,
    ) -> None:
        """Do one measurement, and note what became of it.

        Raises:
            OSError: if our own folder can no longer be written to.
            WrongMeasurement: if it is not that of the checkpoint's files.
        """  # ruff: ignore[docstring-extraneous-exception]
        begin, step = time.monotonic(), checkpoint.step
        try:
            kinds = measure()
        except Incomplete as why:  # it changed while it was read: judge it again
            self.folder.note("incomplete", step=step, reason=str(why))
            self._fail(checkpoint, f"{checkpoint.path.name}: {why}", scanned, tries=TRIES)
        except UserError as why:
            self._fail(checkpoint, str(why), scanned)
        except WrongMeasurement:  # so is, in all likelihood, what comes after it
            raise
        except Exception as why:
            if isinstance(why, OSError) and self._is_ours(why):
                raise
            self.folder.note("error", step=step, traceback=traceback.format_exc())
            self._fail(checkpoint, f"{type(why).__name__}: {why}", scanned)
        else:
            if kinds:  # what was known is no event: a run that finds all done writes nothing
                seconds = round(time.monotonic() - begin, 3)
                self.folder.note("done", step=step, kinds=kinds, seconds=seconds)
                if self.sinks is not None:
                    self.sinks.show(step)
            else:
                self._bar.set_postfix_str(f"{self.measurer.recorder.named(step)} is known")
            (self.outcome.new if kinds else self.outcome.known).append(step)
            self.outcome.failed.pop(step, None)
            self._settle(checkpoint, scanned)

    def _fail(
        self, checkpoint: Checkpoint, reason: str, scanned: ScannedCheckpoint | None, tries: int = 1
    ) -> None:
        """Note a failure; after `tries` of them, wait until the weights change."""
        self._tries[checkpoint] = self._tries.get(checkpoint, 0) + 1
        self.folder.note(
            "failed", step=checkpoint.step, tries=self._tries[checkpoint], reason=reason
        )
        if self._tries[checkpoint] >= tries:
            self.outcome.failed[checkpoint.step] = reason
            self._settle(checkpoint, scanned)

    def _settle(self, checkpoint: Checkpoint, scanned: ScannedCheckpoint | None) -> None:
        """Leave these weights alone from now on."""
        self._tries.pop(checkpoint, None)
        if scanned is not None:
            self._settled[checkpoint] = scanned.verdict.weights

    def _is_settled(self, scanned: ScannedCheckpoint) -> bool:
        """Return whether these very weights were measured, or given up on."""
        return self._settled.get(scanned.checkpoint) == scanned.verdict.weights

    def _is_ours(self, error: OSError) -> bool:
        """Return whether it is our own folder that fails, after which going on makes no sense."""
        named = str(error.filename or "")
        return error.errno in NO_ROOM or named.startswith(str(self.folder.path))

    def _report_not_ready(self, scanned: ScannedCheckpoint) -> None:
        """Note why a checkpoint is not measured, once for each reason."""
        state, reason = scanned.verdict.state, scanned.verdict.reason
        if self._reported.get(scanned.checkpoint) != reason:
            self._reported[scanned.checkpoint] = reason
            self.folder.note(state, step=scanned.checkpoint.step, reason=reason)
            if state == "refused" and self.following is not None:  # else the end says so at once
                tqdm.write(one_line(f"{scanned.checkpoint.path.name}: {reason}"), sys.stderr)

    def _note_skipped(self) -> None:
        """Note what was left alone, and why."""
        if self.outcome.known:
            self.folder.note("skipped", steps=self.outcome.known, reason="measured before")
        seen = self.scanner.look() if self.scanner is not None else []
        if others := sum(not scanned.wanted for scanned in seen):
            self.folder.note("skipped", count=others, reason="not chosen by --steps or --shard")

    def _give_up_on_the_rest(self, scanner: CheckpointScanner) -> None:
        """Count what never became ready as failed; name what a run was still about to finish."""
        done = max((checkpoint.step for checkpoint in self._settled), default=-1)
        for scanned in scanner.look():
            if not scanned.wanted or scanned.is_ready:
                continue
            step, state = scanned.checkpoint.step, scanned.verdict.state
            reason = f"{scanned.checkpoint.path.name} is {state}: {scanned.verdict.reason}"
            late = self.following is not None and step > done and state != "refused"
            if not late or done < 0:
                self.outcome.failed[step] = reason
            elif not self._is_beyond(step):
                print(one_line(f"not measured: {reason}"), file=sys.stderr)

    def _is_beyond(self, step: int) -> bool:
        """Return whether a step lies behind the one at which following was to stop."""
        until = self.following.until_step if self.following is not None else None
        return until is not None and step > until
