"""Base, first and last checkpoint as measured, compared with their files loaded by other code."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import estimators, plugins
from ..checkpoints import Checkpoint, Incomplete, identity, pinned, readiness
from ..errors import UserError, one_line
from ..measurement import KernelMeasurement, RefusalMeasurement
from ..measurement.verification import (
    FAILURES,
    MeasuredSample,
    WrongMeasurement,
    compare_with_files,
    sample_measurement,
)
from ..models.memory import free_bytes
from .models import Models
from .recorder import Recorder

if TYPE_CHECKING:
    from torch import nn

COPIES = 3  # of the weights: the model once more, and two gradients


@dataclass(frozen=True, eq=False)
class _Measured:
    """A measurement that can be compared.

    Attributes:
        step: its step.
        checkpoint: where its files are; None for the base.
        which: their identity.
        sample: what was measured.
        weights: bytes of the model's parameters.
    """

    step: int
    checkpoint: Checkpoint | None
    which: str
    sample: MeasuredSample
    weights: int


class ReloadCheck:
    """Compares measurements of one run with their checkpoints (`verification.independent_load`).

    The base and the first checkpoint are compared at once, and the last one when the run has been
    measured: what one leaves behind in a base that they share shows in a later one only.

    Args:
        recorder: measures a model and writes the tables.
        models: loads checkpoints; their name and precision are taken from it.
    """

    def __init__(self, recorder: Recorder, models: Models) -> None:
        self.recorder = recorder
        self.models = models
        self.unchecked: list[int] = []
        self._latest: _Measured | None = None
        self._compared: set[bool] = set()  # whether a checkpoint, or the base, was

    def note(
        self,
        model: "nn.Module",
        step: int,
        which: str,
        checkpoint: Checkpoint | None,
        found: tuple[KernelMeasurement | None, RefusalMeasurement | None],
    ) -> None:
        """Remember what was measured on a few prompts, as the latest measurement.

        Args:
            model: the model, still in memory as it was measured.
            step: its step.
            which: the identity of its checkpoint.
            checkpoint: where its files are; None for the base.
            found: what was measured.
        """
        if not self.recorder.settings.verify:
            return
        try:
            sample = self._sample(model, *found)
        except FAILURES as error:  # which must not cost the measurement
            self._say_not_compared(step, one_line(error))
            return
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        self._latest = _Measured(step, checkpoint, which, sample, weights)
        self.unchecked.append(step)

    def compare_first(self) -> None:
        """Compare the latest measurement, if it is the first of the base or of a checkpoint.

        Raises:
            WrongMeasurement: if it is not that of its files.
        """  # ruff: ignore[docstring-extraneous-exception]
        measured = self._latest
        if measured is not None and (measured.checkpoint is not None) not in self._compared:
            self.compare_latest()

    def compare_latest(self) -> None:
        """Compare the latest measurement with its files, if that was not done.

        Raises:
            WrongMeasurement: if they differ.
        """
        measured = self._latest
        if measured is None:
            return
        self._latest = None
        self._compared.add(measured.checkpoint is not None)
        if why := _lack_of_memory(measured):
            self._say_not_compared(measured.step, why)
            return
        try:
            message = self._compare(measured)
        except WrongMeasurement:
            raise
        except (UserError, Incomplete, *FAILURES) as error:
            self._say_not_compared(measured.step, one_line(error))
            return
        self.unchecked.clear()
        print(one_line(message), file=sys.stderr)

    def _say_not_compared(self, step: int, why: str) -> None:
        """Note that a measurement stands without a comparison, and why."""
        self.recorder.folder.note("not compared", step=step, reason=why)
        message = f"{self.recorder.named(step)} was not compared with its files: {why}"
        print(one_line(message), file=sys.stderr)

    def _compare(self, measured: _Measured) -> str:
        """Return what a comparison found, for a line."""
        with self._files(measured) as (model, adapter):
            place = measured.checkpoint.path if measured.checkpoint else model
            found = compare_with_files(
                measured.sample, model, adapter, self.models.load, named=str(place)
            )
        self.recorder.folder.note("compared", step=measured.step, errors=found.errors)
        return f"{self.recorder.named(measured.step)} {found}"

    @contextmanager
    def _files(self, measured: _Measured) -> Generator[tuple[str, Path | None], None, None]:
        """Yield the model's name or folder and the adapter's folder, held while they are read.

        Raises:
            UserError: if the checkpoint is no longer what was measured.
        """
        if measured.checkpoint is None:
            assert self.models.name is not None
            yield self.models.name, None
            return
        verdict = readiness(measured.checkpoint.path)
        if verdict.state not in ("ready", "unmarked"):
            raise UserError(f"the checkpoint is {verdict.state} by now")
        with pinned(measured.checkpoint, verdict, self.recorder.folder.pins) as pin:
            if identity(pin, verdict.weights) != measured.which:
                raise UserError("the checkpoint was written anew since")
            if verdict.kind == "full":
                yield str(pin), None
            else:
                assert self.models.name is not None
                yield self.models.name, pin

    def _sample(
        self,
        model: "nn.Module",
        kernels: KernelMeasurement | None,
        refusals: RefusalMeasurement | None,
    ) -> MeasuredSample:
        """Return what was measured on a few prompts; the model's own logits under a mitigation."""
        recorder, how = self.recorder, self.recorder.settings
        if how.mitigation is not None:
            kernels = refusals = None
        asked = how.refusal
        return sample_measurement(
            model,
            recorder.tokenizer,
            recorder.encoded,
            recorder.rows or None,
            kernel=kernels,
            estimator=plugins.load(estimators, how.kernel.estimator)() if how.kernel else None,
            selection=how.kernel.parameters if how.kernel else "all",
            refusal=refusals,
            phrases=asked.phrase_sets[0].phrases if asked else (),
        )


def _lack_of_memory(measured: _Measured) -> str:
    """Return why a second model does not fit into the memory of this machine; empty if it does."""
    needed = measured.weights * (COPIES if measured.sample.kernel is not None else 1)
    free = free_bytes(torch.device("cpu"))
    on_cpu = not torch.cuda.is_available()
    if on_cpu and needed > free:
        return f"that needs {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free"
    return ""
