"""One model into the folder: what is measured, on which prompts, and what is already there."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .. import estimators, mitigations, plugins
from ..direction_measurement import DirectionMeasurement
from ..errors import MeasurementWarning, UserError, one_line
from ..measurement import (
    ActivationMeasurement,
    Encoded,
    KernelMeasurement,
    RefusalMeasurement,
    encode,
    measure_activations,
    measure_kernel,
    measure_refusal,
)
from ..measurement.directions import measure_directions
from ..measurement.influence import Influence, influence
from ..measurement.readouts import Tokens, token_id
from ..measurement.verification import WrongKernel, verify
from ..models.memory import halving
from ..models.parameters import ParameterSelection, remarks
from ..prompts.prompt_set import PromptSet
from ..prompts.rendering import dated
from ..refusal import REDUCTIONS
from .coverage import coverage
from .folder import MeasurementFolder
from .settings import (
    DirectionSettings,
    InfluenceSettings,
    KernelSettings,
    MeasureSettings,
    RefusalSettings,
    require_same,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import LogitsProcessorList, PreTrainedTokenizerBase

T = TypeVar("T")
FIRST_BATCH_SIZE = 16
REFUSALS_AT_A_TIME = 4
"""Times as many prompts where nothing is differentiated: each pass reads all weights once."""
LARGEST_BLOCKS = 1 << 26
"""Numbers in all blocks up to which they are held, so that a measurement can be compared."""


class Recorder:
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
        self.folder = folder
        self.prompts = prompts
        self.settings = settings
        self.about = about
        self.rows: list[int] = []
        if settings.kernel is not None:
            chosen = prompts.sampled_rows(settings.kernel.per_group, settings.kernel.seed)
            self.rows = list(chosen)
        self.observed: list[int] = []
        if settings.influence is not None:
            how = settings.influence
            self.observed = list(prompts.sampled_rows(how.per_group, how.seed))
        self._batch_size = settings.batch_size or FIRST_BATCH_SIZE
        self._encoded: Encoded | None = None
        self._tokenizer: Any = None
        name = settings.kernel.estimator if settings.kernel is not None else None
        self._method: Any = plugins.load(estimators, name)() if name is not None else None
        self._verified = False
        self._remarked = False
        self._covered = False
        folder_of = settings.mitigation
        self._mitigation = mitigations.load(folder_of) if folder_of is not None else None

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The run's tokenizer, once `prepare` was called."""
        return self._tokenizer

    @property
    def encoded(self) -> Encoded:
        """The prompts and their tokens, once `prepare` was called."""
        assert self._encoded is not None
        return self._encoded

    def check(self) -> None:
        """Raise if the folder holds something else, as far as this is known without a tokenizer."""
        prompts = {"digest": self.prompts.digest, "count": len(self.prompts)}
        require_same(self.folder.path, self.folder.record, self.settings.record(prompts))

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
        how = self.settings
        asked = {
            "kernel": how.kernel,
            "refusal": how.refusal,
            "activations": how.activations,
            "directions": how.directions,
            "influence": how.influence,
        }
        return [
            kind
            for kind, wanted in asked.items()
            if wanted is not None and self.folder.measured(kind, step) != identity
        ]

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
            self._tell_coverage(model, step, self.settings.kernel)
            self._verify(model, self.settings.kernel)
            self._remark(model, self.settings.kernel)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MeasurementWarning)  # said once for all checkpoints
                kernels = self._kernel(model, self.settings.kernel)
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

    def _tell_coverage(self, model: "nn.Module", step: int, how: KernelSettings) -> None:
        """Say once how the parameters are handled, and keep it as an event."""
        if self._covered:
            return
        chosen = self.encoded.take(self.rows)
        try:
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
            found = verify(
                model,
                self._tokenizer,
                self.encoded.take(self.rows),
                estimator=self._method,
                parameters=how.parameters,
            )
            told = str(found)
        except torch.OutOfMemoryError:
            told = "the estimator was not verified: two whole gradients do not fit"
        except WrongKernel as error:
            if not hasattr(self._method, "rtol"):
                raise
            told = f"warning: {error}"
        self._verified = True
        print(one_line(told), file=sys.stderr)

    def _remark(self, model: "nn.Module", how: KernelSettings) -> None:
        """Say, once, what a reader should know about the parameters measured on such a model."""
        if not self._remarked:
            self._remarked = True
            for remark in remarks(model, [ParameterSelection.parse(how.parameters)]):
                print(one_line(remark), file=sys.stderr)

    def _kernel(self, model: "nn.Module", how: KernelSettings) -> KernelMeasurement:
        """Return the kernel at this model's top tokens, the first one's, or those given."""
        if how.tokens is not None:
            return self._kernel_at(
                model, how, [token_id(self._tokenizer, token) for token in how.tokens]
            )
        if how.top_k_at == "each" or how.full_vocabulary or how.random_probes:
            return self._kernel_at(model, how, None)
        first = self.folder.first_tokens(self.rows)
        found = self._kernel_at(model, how, first)
        if first is None and found.tokens is not None:  # this is the first
            self.folder.write_first_tokens(self.rows, found.tokens)
            settled = self.folder.first_tokens(self.rows)
            if settled != found.tokens.tolist():  # another process was faster
                return self._kernel_at(model, how, settled)
        return found

    def _kernel_at(
        self, model: "nn.Module", how: KernelSettings, tokens: Tokens | None
    ) -> KernelMeasurement:
        """Return the kernel at tokens, `[k]` or `[n, k]`; None where the model's own are read."""

        def measured(size: int | None) -> KernelMeasurement:
            return measure_kernel(
                model,
                self._tokenizer,
                self.encoded.take(self.rows),
                estimator=self._method,
                parameters=how.parameters,
                top_k=how.top_k,
                tokens=tokens,
                full_vocabulary=how.full_vocabulary,
                random_probes=how.random_probes,
                by=how.by,
                keep_blocks=how.keep_blocks or self._compares_blocks(how),
                batch_size=size,
            )

        return self._fitted(measured, getattr(self._method, "batch_size", None))

    def _compares_blocks(self, how: KernelSettings) -> bool:
        """Return whether to hold the blocks until the measurement has been compared."""
        size = len(self.rows) * (how.top_k if how.tokens is None else len(how.tokens))
        all_logits = how.full_vocabulary or how.random_probes is not None
        return self.settings.verify and not all_logits and size**2 <= LARGEST_BLOCKS

    def _fitted(
        self, measure: Callable[[int | None], KernelMeasurement], own: int | str | None
    ) -> KernelMeasurement:
        """Return the kernel, at the batch size given, or at the estimator's own where it fits.

        Args:
            measure: measures it with so many prompts at a time.
            own: the estimator's batch size; it finds `auto` by itself, and halves it by itself.

        Returns:
            The kernel.

        Raises:
            UserError: if memory runs out for good.
        """
        if self.settings.batch_size is not None and own is not None:
            return self._in_batches(measure)
        try:
            return measure(None)
        except torch.OutOfMemoryError as error:
            if not isinstance(own, int):
                raise UserError(
                    "out of memory, and fewer prompts at a time would not help: try a smaller"
                    " --per-group or --top-k, or --dtype bfloat16"
                ) from error
        torch.cuda.empty_cache()
        return self._in_batches(measure)

    def _refusal(
        self,
        model: "nn.Module",
        how: RefusalSettings,
        batch_size: int,
        processors: "LogitsProcessorList",
    ) -> Any:
        """Return the refusals."""
        return measure_refusal(
            model,
            self._tokenizer,
            self.encoded,
            phrases=how.phrases,
            apostrophes=how.apostrophes,
            generate=how.generate,
            max_new_tokens=how.max_new_tokens,
            exact_phrases=how.exact_phrases,
            progress=True,
            logits_processor=processors,
            batch_size=batch_size * (REFUSALS_AT_A_TIME if self.settings.batch_size is None else 1),
        )

    def _activations(
        self, model: "nn.Module", layers: tuple[int, ...] | str, batch_size: int
    ) -> ActivationMeasurement:
        """Return the activations."""
        return measure_activations(
            model, self._tokenizer, self.encoded, layers=layers, batch_size=batch_size
        )

    def _verdicts(
        self, refusals: RefusalMeasurement | None, how: DirectionSettings
    ) -> tuple[bool | None, ...] | None:
        """Return which prompts were refused, where answers of that length were just judged."""
        given = self.settings.refusal
        same = given is not None and given.max_new_tokens == how.max_new_tokens
        return refusals.refuses if refusals is not None and same else None

    def _directions(
        self, model: "nn.Module", refuses: tuple[bool | None, ...] | None, batch_size: int
    ) -> DirectionMeasurement:
        """Return the activations at named positions."""
        how = self.settings.directions
        assert how is not None
        return measure_directions(
            model,
            self._tokenizer,
            self.encoded,
            refuses=refuses,
            layers=how.layers,
            max_new_tokens=how.max_new_tokens,
            batch_size=batch_size,
        )

    def _influence(self, model: "nn.Module", how: InfluenceSettings, batch_size: int) -> Influence:
        """Return the influence on refusals."""
        return influence(
            model,
            self._tokenizer,
            observed=self.encoded.take(self.observed),
            updated=how.sample(),
            loss=how.loss,
            tokens=None,
            phrases=how.phrases,
            apostrophes=how.apostrophes,
            reductions=REDUCTIONS,
            parameters=how.parameters,
            batch_size=batch_size,
        )

    def _in_batches(self, measure: Callable[[int], T]) -> T:
        """Return what `measure` returns for the largest batch size that memory allows.

        Raises:
            UserError: if memory runs out at the size given, or at 1.
        """
        given, size = self.settings.batch_size is not None, self._batch_size
        try:
            if given:
                return measure(size)
            found, self._batch_size = halving(measure, size)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory with {size if given else 1} prompts at a time:"
                " try a smaller --batch-size, --per-group or --dtype bfloat16"
            ) from error
        return found
