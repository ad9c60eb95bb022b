"""One model into the folder: what is measured, on which prompts, and what is already there."""

import sys
import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .. import mitigations
from ..errors import MeasurementWarning, one_line
from ..measurement import (
    KernelMeasurement,
    RefusalMeasurement,
    encode,
)
from ..measurement.verification import WrongKernel, verify
from ..models.memory import as_out_of_memory
from ..models.parameters import ParameterSelection, remarks
from ..prompts.prompt_set import PromptSet
from ..prompts.rendering import dated
from .coverage import coverage
from .folder import MeasurementFolder
from .model_measurer import ModelMeasurer
from .settings import (
    KernelSettings,
    MeasureSettings,
    require_same,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import LogitsProcessorList, PreTrainedTokenizerBase


class Recorder(ModelMeasurer):
    """Measures models of one run on one set of prompts, into one folder.

    Args:
        folder: where to.
        prompts: all of them; the kernel takes a sample.
        settings: how.
        about: further entries of `run.json`, such as the command line.
    """

    def __init__(
        self,
        folder: MeasurementFolder,
        prompts: PromptSet,
        settings: MeasureSettings,
        about: dict[str, Any],
    ) -> None:
        super().__init__(folder, prompts, settings)
        self.about = about
        self.replaced = False
        """Whether tables of an earlier checkpoint of the same name were replaced."""
        self._verified = False
        self._remarked = False
        self._covered = False
        folder_of = settings.mitigation
        self._mitigation = mitigations.load(folder_of) if folder_of is not None else None

    @property
    def adapter_apart(self) -> bool:
        """Whether the mitigation needs a checkpoint's adapter beside the base, not merged."""
        return self._mitigation is not None and self._mitigation.adapter_apart

    def check(self) -> None:
        """Raise if the folder holds something else, as far as this is known without a tokenizer."""
        prompts = {"digest": self.prompts.digest, "count": len(self.prompts)}
        require_same(self.folder.path, self.folder.settled, self.settings.record(prompts))

    def prepare(self, tokenizer: "PreTrainedTokenizerBase", base: tuple[str, str] | None) -> None:
        """Encode the prompts and settle with the folder what is measured.

        Args:
            tokenizer: the run's.
            base: name and identity of the model of step 0, if known.
        """
        how = self.settings
        with dated(self.folder.record.get("prompts", {}).get("template_date")):
            encoded = encode(tokenizer, self.prompts, how.template, how.max_length)
        prompts = {
            "digest": self.prompts.digest,
            "count": len(self.prompts),
            **encoded.record,
            "tokens": encoded.digest,
        }
        self.folder.adopt(self.settings.record(prompts, base), self.about)
        self.folder.write_prompts(encoded, set(self.rows))
        if self.settings.influence is not None:
            self.folder.write_updated(self.settings.influence.sample())
        self._tokenizer, self._encoded = tokenizer, encoded

    def describe(self) -> str:
        """Return what is measured of how many prompts, such as `kernel of 6 and refusal of 9`."""
        count, pairs = len(self.prompts), self.settings.influence
        parts = [
            f"kernel of {len(self.rows)}" if self.rows else "",
            f"refusal of {count}" if self.settings.refusal else "",
            f"activations of {count}" if self.settings.activations else "",
            f"directions of {count}" if self.settings.directions else "",
            f"influence of {len(pairs.sample())} pairs on {len(self.observed)}" if pairs else "",
        ]
        return " and ".join(filter(None, parts))

    def named(self, step: int) -> str:
        """Return what a step is called in messages."""
        return f"step {step}"

    def remarks(self) -> list[str]:
        """Return what a reader should know about where in the prompts is measured, a line each."""
        return self.encoded.remarks(self._tokenizer)

    def missing(self, step: int, identity: str) -> list[str]:
        """Return which of `folder.MEASURED` this checkpoint still lacks."""
        return self.folder.missing(self.settings, step, identity)

    def record(
        self, model: "nn.Module", step: int, identity: str, kinds: list[str]
    ) -> tuple[KernelMeasurement | None, RefusalMeasurement | None]:
        """Measure a model and write its tables; those of an earlier checkpoint do not stay.

        Args:
            model: the model, whole and in memory.
            step: its step.
            identity: of the checkpoint it came from.
            kinds: what to measure, as `missing` names it.

        Returns:
            The kernel and the refusals, as far as they were measured.
        """
        old = self.folder.of_others(step, identity)
        self.folder.note("measuring", step=step, kinds=kinds)
        with (
            dated(self.encoded.template.day),
            mitigations.applied(self._mitigation, model, self._tokenizer) as processors,
        ):
            found = self._measure(model, step, identity, kinds, processors)
        self.folder.discard_others(step, identity)
        self.replaced = self.replaced or bool(old)
        for kind in old:
            self.folder.note("replaced", step=step, table=kind, identity=identity)
        return found

    def _measure(
        self,
        model: "nn.Module",
        step: int,
        identity: str,
        kinds: list[str],
        processors: "LogitsProcessorList",
    ) -> tuple[KernelMeasurement | None, RefusalMeasurement | None]:
        """Measure a model as it is now, and write its tables.

        Returns:
            The kernel and the refusals, as far as they were measured.
        """
        kernels, refusals = None, None
        if "kernel" in kinds and self.settings.kernel is not None:
            self._report_coverage(model, step, self.settings.kernel)
            self._verify(model, self.settings.kernel)
            self._remark(model, self.settings.kernel)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MeasurementWarning)  # said once for all checkpoints
                kernels = self._kernel(model, self.settings.kernel, step, identity)
            texts = None if kernels.tokens is None else kernels.token_frame()
            kept = kernels if self.settings.kernel.keep_blocks else replace(kernels, blocks=None)
            self.folder.write_kernel(step, identity, kept, self.rows, texts)
        if "refusal" in kinds and self.settings.refusal is not None:
            how = self.settings.refusal
            refusals = self._in_batches(lambda size: self._refusal(model, how, size, processors))
            self.folder.write_refusal(step, identity, refusals)
        if "activations" in kinds and self.settings.activations is not None:
            layers = self.settings.activations.layers
            found = self._in_batches(lambda size: self._activations(model, layers, size))
            self.folder.write_activations(step, identity, found)
        if "directions" in kinds and self.settings.directions is not None:
            answered = self._verdicts(refusals, self.settings.directions)
            lying = self._in_batches(partial(self._directions, model, answered))
            self.folder.write_directions(step, identity, lying)
        if "influence" in kinds and self.settings.influence is not None:
            pairs = self.settings.influence
            predicted = self._in_batches(lambda size: self._influence(model, pairs, size))
            self.folder.write_influence(step, identity, predicted, self.observed)
        return kernels, refusals

    def _report_coverage(self, model: "nn.Module", step: int, how: KernelSettings) -> None:
        """Say once how the parameters are handled, and keep it as an event."""
        if self._covered:
            return
        chosen = self.encoded.take(self.rows)
        try:
            with as_out_of_memory():
                found = coverage(self._method, model, chosen, how.parameters)
        except torch.OutOfMemoryError:  # the kernel will say so
            return
        self._covered = True
        if found is not None:
            shares = {"numbers": found.numbers, "share_without_rule": found.share_without_rule}
            self.folder.note("coverage", step=step, **found.handled, **shares)
            print(found, file=sys.stderr)

    def _verify(self, model: "nn.Module", how: KernelSettings) -> None:
        """Compare the estimator with plain backward passes, once, and say so.

        Raises:
            WrongKernel: if they differ, unless the estimator is one that approximates.
        """
        if not self.settings.verify or self._verified:
            return
        try:
            with as_out_of_memory():
                found = verify(
                    model,
                    self._tokenizer,
                    self.encoded.take(self.rows),
                    estimator=self._method,
                    parameters=how.parameters,
                )
            message = str(found)
        except torch.OutOfMemoryError:
            message = "the estimator was not verified: two whole gradients do not fit"
        except WrongKernel as error:
            if not hasattr(self._method, "rtol"):
                raise
            message = f"warning: {error}"
        self._verified = True
        print(one_line(message), file=sys.stderr)

    def _remark(self, model: "nn.Module", how: KernelSettings) -> None:
        """Say, once, what a reader should know about the parameters measured on such a model."""
        if not self._remarked:
            self._remarked = True
            for remark in remarks(model, [ParameterSelection.parse(how.parameters)]):
                print(one_line(remark), file=sys.stderr)
