"""One measurement: from a checkpoint, or the base, to its tables."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..checkpoints import Incomplete, identity, pinned
from ..errors import UserError
from .models import Models
from .recorder import Recorder
from .reload_check import ReloadCheck
from .scan import ScannedCheckpoint

BASE_STEP = 0


class Unfit(UserError):
    """This checkpoint cannot be measured; others may."""


class CheckpointMeasurer:
    """Measures one model after the other of the same run.

    Args:
        recorder: measures a model and writes the tables.
        models: loads the models of checkpoints.
        measures_base: whether what is measured can be measured on a base without an adapter.
    """

    def __init__(self, recorder: Recorder, models: Models, *, measures_base: bool = True) -> None:
        self.recorder = recorder
        self.models = models
        self.measures_base = measures_base
        self.check = ReloadCheck(recorder, models)

    def prepare(self, first: ScannedCheckpoint | None) -> None:
        """Settle tokenizer and settings.

        Args:
            first: the first checkpoint there is; its tokenizer, if it has one, is that of the run.

        Raises:
            Unfit: if it is refused.
        """
        if first is None:
            tokenizer = self.models.tokenizer()
        elif first.hold is not None:
            tokenizer = self.models.tokenizer(first.hold.path)
        else:
            with ExitStack() as stack:
                try:
                    pin = stack.enter_context(self._held(first))
                except UserError as why:
                    raise Unfit(str(why)) from why
                tokenizer = self.models.tokenizer(pin)
        self.recorder.prepare(tokenizer, self.models.base_identity())

    def describe(self) -> str:
        """Return one line about what is measured on what."""
        recorder, base = self.recorder, self.models.name
        below = f", base {base}" if base else ", no base known (step 0 needs --model)"
        folder = recorder.settings.mitigation
        under = f", under the mitigation {folder}" if folder else ""
        what, template = recorder.describe(), recorder.encoded.template.name
        return f"{what} prompts, template {template}{below}{under}"

    def of_base(self, step: int = BASE_STEP) -> list[str]:
        """Measure the base, as step 0 unless another one is given.

        Args:
            step: its step.

        Returns:
            What was measured now, such as `kernel`; nothing if all was there.
        """
        known = self.models.base_identity()
        assert known is not None
        kinds = self.recorder.missing(step, known[1])
        how = self.recorder.settings.influence
        if how is not None and how.needs_adapter and self.models.adapts:
            kinds = [kind for kind in kinds if kind != "influence"]  # it has nothing that moves
        if kinds:
            self._note_ready(step, known[1])
            model = self.models.base()
            found = self.recorder.record(model, step, known[1], kinds)
            self.check.note(model, step, known[1], None, found)
            self.check.compare_first()
        return kinds

    def of_checkpoint(self, scanned: ScannedCheckpoint) -> list[str]:
        """Measure a checkpoint.

        Args:
            scanned: one that is ready.

        Returns:
            What was measured now; nothing if all was there.
        """
        step, verdict = scanned.checkpoint.step, scanned.verdict
        with ExitStack() as stack:
            # Pinned only while it is read: from then on the model is in memory.
            with self._held(scanned) as pin:
                which = identity(pin, verdict.weights)
                kinds = self.recorder.missing(step, which)
                if not kinds:
                    return []
                self._note_ready(step, which)
                model = stack.enter_context(self.models.opened(pin, verdict.kind))
            found = self.recorder.record(model, step, which, kinds)
            self.check.note(model, step, which, scanned.checkpoint, found)
        del model  # which a second one, of the same files, now takes the place of
        self.check.compare_first()
        return kinds

    @contextmanager
    def _held(self, scanned: ScannedCheckpoint) -> Generator[Path, None, None]:
        """Yield a pin of a checkpoint, taken now unless there is one already, and release it."""
        if scanned.hold is None:
            with pinned(scanned.checkpoint, scanned.verdict, self.recorder.folder.pins) as pin:
                yield pin
            return
        try:
            yield scanned.hold.path
        except BaseException:
            with suppress(Incomplete):
                scanned.hold.release()
            raise
        scanned.hold.release()

    def _note_ready(self, step: int, which: str) -> None:
        """Note that a checkpoint is whole and held, and which one it is."""
        self.recorder.folder.note("ready", step=step, identity=which)
