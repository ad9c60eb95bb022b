"""What is measured of one model in memory, in batches that fit."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .. import estimators, plugins
from ..directions.measurement import DirectionMeasurement
from ..errors import UserError
from ..measurement import (
    ActivationMeasurement,
    Encoded,
    KernelMeasurement,
    RefusalMeasurement,
    measure_activations,
    measure_kernel,
    measure_refusal,
)
from ..measurement.directions import measure_directions
from ..measurement.influence import Influence, influence
from ..measurement.influence.examples import encode_updated
from ..measurement.kernels import with_settings
from ..measurement.readouts import Tokens, token_id
from ..models.memory import as_out_of_memory, halving
from ..prompts.prompt_set import PromptSet
from ..refusal import REDUCTIONS
from .folder import MeasurementFolder
from .settings import (
    DirectionSettings,
    InfluenceSettings,
    KernelSettings,
    MeasureSettings,
    RefusalSettings,
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


class ModelMeasurer:
    """Measures a model on one set of prompts; what is measured is not written.

    Args:
        folder: which knows the tokens of the first checkpoint.
        prompts: all of them; the kernel takes a sample.
        settings: how.
    """

    def __init__(
        self,
        folder: MeasurementFolder,
        prompts: PromptSet,
        settings: MeasureSettings,
    ) -> None:
        self.folder = folder
        self.prompts = prompts
        self.settings = settings
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

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The run's tokenizer, once `prepare` was called."""
        return self._tokenizer

    @property
    def encoded(self) -> Encoded:
        """The prompts and their tokens, once `prepare` was called."""
        assert self._encoded is not None
        return self._encoded

    def _kernel(
        self, model: "nn.Module", how: KernelSettings, step: int, identity: str
    ) -> KernelMeasurement:
        """Return the kernel at this model's top tokens, the first one's, or those given.

        Args:
            model: the model.
            how: settings.
            step: the model's, in case it is the first.
            identity: of its checkpoint.
        """
        unfinished = self.folder.unfinished_kernel(step)
        if how.tokens is not None:
            tokens = [token_id(self._tokenizer, token) for token in how.tokens]
            return self._kernel_at(model, how, tokens, unfinished)
        if how.top_k_at == "each" or how.full_vocabulary or how.random_probes:
            return self._kernel_at(model, how, None, unfinished)
        self.folder.require_first_tokens_of(step, identity)
        first = self.folder.first_tokens(self.rows)
        found = self._kernel_at(model, how, first, unfinished)
        if first is None and found.tokens is not None:  # this is the first
            self.folder.write_first_tokens(self.rows, found.tokens, step, identity)
            settled = self.folder.first_tokens(self.rows)
            if settled != found.tokens.tolist():  # another process was faster
                return self._kernel_at(model, how, settled, unfinished)
        return found

    def _kernel_at(
        self,
        model: "nn.Module",
        how: KernelSettings,
        tokens: Tokens | None,
        unfinished: Path,
    ) -> KernelMeasurement:
        """Return the kernel at tokens.

        Args:
            model: the model.
            how: settings.
            tokens: `[k]` or `[n, k]`; None where the model's own are read.
            unfinished: the file in which a kernel that is stopped can be gone on with.
        """
        method = with_settings(self._method, state_file=unfinished)

        def measured(size: int | None) -> KernelMeasurement:
            return measure_kernel(
                model,
                self._tokenizer,
                self.encoded.take(self.rows),
                estimator=method,
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
            with as_out_of_memory():
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
        return measure_activations(
            model, self._tokenizer, self.encoded, layers=layers, batch_size=batch_size
        )

    def _verdicts(
        self, refusals: RefusalMeasurement | None, how: DirectionSettings
    ) -> tuple[bool | None, ...] | None:
        """Return which prompts were refused, where answers were just judged in the same way."""
        given = self.settings.refusal
        same = (
            given is not None
            and given.max_new_tokens == how.max_new_tokens
            and given.phrase_sets[0].prefixes == self.settings.filter_of_directions.prefixes
        )
        return refusals.refuses if refusals is not None and same else None

    def _directions(
        self, model: "nn.Module", refuses: tuple[bool | None, ...] | None, batch_size: int
    ) -> DirectionMeasurement:
        """Return the activations at named positions, with verdicts by the same filter always."""
        how = self.settings.directions
        assert how is not None
        if refuses is None:
            refuses = measure_refusal(
                model,
                self._tokenizer,
                self.encoded,
                phrases=self.settings.filter_of_directions,
                max_new_tokens=how.max_new_tokens,
                batch_size=batch_size,
            ).refuses
        return measure_directions(
            model,
            self._tokenizer,
            self.encoded,
            refuses=refuses,
            layers=how.layers,
            batch_size=batch_size,
        )

    def _influence(self, model: "nn.Module", how: InfluenceSettings, batch_size: int) -> Influence:
        """Return the influence on refusals."""
        template = self.encoded.template
        return influence(
            model,
            self._tokenizer,
            observed=self.encoded.take(self.observed),
            updated=encode_updated(
                self._tokenizer, how.sample(), template, how.system, how.max_length
            ),
            loss=how.loss,
            tokens=None,
            phrases=how.phrases,
            apostrophes=how.apostrophes,
            reductions=REDUCTIONS,
            parameters=how.parameters,
            batch_size=batch_size,
            progress=True,
        )

    def _in_batches(self, measure: Callable[[int], T]) -> T:
        """Return what `measure` returns for the largest batch size that memory allows.

        Raises:
            UserError: if memory runs out at the size given, or at 1.
        """
        given, size = self.settings.batch_size is not None, self._batch_size
        try:
            if given:
                with as_out_of_memory():
                    return measure(size)
            found, self._batch_size = halving(measure, size)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory with {size if given else 1} prompts at a time:"
                " try a smaller --batch-size, --per-group or --dtype bfloat16"
            ) from error
        return found
