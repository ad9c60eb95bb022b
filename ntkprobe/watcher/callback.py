"""Measure from inside training, where no rotation is faster: a callback for the Trainer."""

import logging
from collections import Counter
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checkpoints import identity, loaded_identity, readiness
from ..models.precision import full_float32
from ..models.wrappers import computing_plainly, inner_model
from ..places import measurements_beside
from ..prompts.prompt_set import PromptSet
from .folder import MeasurementFolder
from .recorder import Recorder
from .settings import MeasureSettings

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class TrajectoryCallback(TrainerCallback):
    """Measures the model in memory at the start and at every save, `Trainer(callbacks=[...])`.

    Training itself is not changed, neither its weights nor its random numbers. The checkpoint just
    saved lends its identity, so that `ntkprobe measure` on the same folder finds it done. The model
    is measured in the precision of its weights, as that command would: outside of the autocast that
    `bf16=True` puts around it, which `run.json` records as `trained_in`.

    Args:
        prompts: what to measure on.
        output_dir: where to; by default beside the run, `RUN-ntk`.
        settings: how to measure; precision and attention are those of the model that is trained.
        tokenizer: by default the trainer's own (`processing_class`).
    """

    def __init__(
        self,
        prompts: PromptSet,
        output_dir: str | PathLike[str] | None = None,
        *,
        settings: MeasureSettings | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
    ) -> None:
        self.prompts = prompts
        self.output_dir = output_dir
        self.settings = settings or MeasureSettings()
        self.settings.check()
        self.tokenizer = tokenizer
        self._recorder: Recorder | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Settle what is measured; measure step 0 unless training goes on from a later one.

        Args:
            args: the trainer's.
            state: the trainer's.
            control: the trainer's.
            kwargs: among them `model` and `processing_class`.
        """
        if not state.is_world_process_zero:
            return
        model = inner_model(kwargs["model"])
        run = Path(str(args.output_dir))
        folder = MeasurementFolder(Path(self.output_dir or measurements_beside(run)))
        about = {"ckpt_dir": str(run), "by": type(self).__name__, "trained_in": _precision(args)}
        recorder = Recorder(folder, self.prompts, self._settings_of(model), about)
        recorder.prepare(self.tokenizer or kwargs["processing_class"], None)
        self._recorder = recorder
        if state.global_step == 0:
            self._measure(model, 0, loaded_identity(model))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the model that was just saved.

        Args:
            args: the trainer's.
            state: the trainer's.
            control: the trainer's.
            kwargs: among them `model`.
        """
        if self._recorder is None:
            return
        saved = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        verdict = readiness(saved)
        model = inner_model(kwargs["model"])
        which = identity(saved, verdict.weights) if verdict.weights else loaded_identity(model)
        self._measure(model, state.global_step, which)

    def _settings_of(self, model: "nn.Module") -> MeasureSettings:
        """Return the settings with what is true of the model in memory."""
        sizes: Counter[torch.dtype] = Counter()
        for parameter in model.parameters():  # an adapter may have another dtype than its base
            sizes[parameter.dtype] += parameter.numel()
        dtype = str(sizes.most_common(1)[0][0]).removeprefix("torch.")
        attention = getattr(model.config, "_attn_implementation", None) or "eager"
        load = replace(self.settings.load, dtype=dtype, attn_implementation=str(attention))
        return replace(self.settings, load=load)

    def _measure(self, model: "nn.Module", step: int, which: str) -> None:
        """Measure, unless it was; a failure is logged and does not end the training."""
        assert self._recorder is not None
        folder, kinds = self._recorder.folder, self._recorder.missing(step, which)
        if not kinds:
            return
        try:
            with torch.random.fork_rng(), computing_plainly(model), full_float32():
                self._recorder.record(model, step, which, kinds)
            folder.note("done", step=step, kinds=kinds, by=type(self).__name__)
        except Exception as error:
            logger.warning("step %d was not measured: %s", step, error)
            folder.note("failed", step=step, reason=f"{type(error).__name__}: {error}")


def _precision(args: TrainingArguments) -> str | None:
    """Return what a trainer's passes are cast to, where they are."""
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else None
