"""What a training shows, when it saves, and the steps that its optimiser really takes.

FOLDER/step-00000001.safetensors    Δθ of step 1 by canonical name; of an adapter alone, with LoRA
"""

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging

from ..errors import UserError, one_line
from ..models.parameters import difference, named_parameters
from ..models.wrappers import inner_model
from ..progress import progress
from ..storage import write_tensors


class Progress(TrainerCallback):
    """One bar on stderr with the last loss, in place of transformers' lines on stdout."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the bar where the run stands."""
        if state.is_world_process_zero:
            self.bar = progress(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.description,
                unit="step",
                disable=bool(args.disable_tqdm),
                dynamic_ncols=True,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move it."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the loss."""
        if self.bar is not None and logs and "loss" in logs:
            shown = {k: logs[k] for k in ("loss", "circle_excess") if k in logs}
            self.bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close it."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class SaveAt(TrainerCallback):
    """Saves after the given steps and after the last; step 0 is the model before training."""

    def __init__(self, steps: list[int], trainer: Trainer) -> None:
        self.steps = frozenset(steps)
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save step 0, without an optimiser: nothing can be resumed from before the beginning."""
        if 0 in self.steps and state.global_step == 0:
            folder = Path(str(args.output_dir)) / "checkpoint-0"
            self.trainer.save_model(str(folder))
            if state.is_world_process_zero:
                state.save_to_json(str(folder / "trainer_state.json"))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint where one is due."""
        if state.global_step in self.steps or state.global_step >= state.max_steps:
            control.should_save = True


@contextmanager
def quiet() -> Generator[None]:
    """Keep transformers' advice and weight-loading bars off the terminal for the block.

    Yields:
        Nothing.
    """
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # About each other's renamed attributes: nothing that a user of ours could change.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
            # Of a base that is one file peft asks for a config.json beside it, and goes without.
            warnings.filterwarnings("ignore", "Could not find a config file", UserWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def settings_in_one_line(began: Callable[[], bool] = lambda: False) -> Generator[None]:
    """Say in one line which settings transformers cannot train with.

    Args:
        began: whether steps were taken, after which an error is not one of settings.

    Yields:
        Nothing.

    Raises:
        UserError: for what it raises before the first step.
    """  # ruff: ignore[docstring-missing-exception]
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        if began():
            raise
        raise UserError(f"cannot train with these settings: {one_line(error)}") from error


def install(trainer: Trainer, description: str, save_at: list[int] | None) -> None:
    """Give a trainer our bar and, where steps are named, our saves; refuse a divided model."""
    _require_whole_parameters(trainer)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(description))
    if save_at:
        trainer.add_callback(SaveAt(save_at, trainer))


def _require_whole_parameters(trainer: Trainer) -> None:
    """Refuse FSDP and DeepSpeed ZeRO-3, where no process has the model that `final` is made of.

    Raises:
        UserError: if one of them is on.
    """
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    sharded = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed ZeRO-3"
    if trainer.is_fsdp_enabled or getattr(plugin, "zero_stage", 0) == 3:
        raise UserError(
            f"{sharded} is not supported: its processes hold pieces of the model. Use torchrun "
            "without it, with LoRA, --gradient-checkpointing or smaller accumulated batches"
        )


class StepCallback(TrainerCallback):
    """Writes each step's actual change of the trained parameters, `Trainer(callbacks=[...])`.

    Whatever the optimiser is (AdamW, with its moments and its decay) and whatever made the gradient
    (batches added up, clipping, dropout, mixed precision): Δθ = θ after the step less θ before it,
    exact in float32 at least. What the passes were cast to is in each file's metadata. Training
    itself is not changed. `ntkprobe.measurement.influence.read_steps` reads them, and
    `predict_step` there computes what they did.

    Args:
        output_dir: where to; by default beside the run, `RUN-steps`.
    """

    def __init__(self, output_dir: str | PathLike[str] | None = None) -> None:
        self.output_dir = output_dir
        self._folder = Path()
        self._before: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the folder.

        Args:
            args: the trainer's.
            state: the trainer's.
            control: the trainer's.
            kwargs: not used.

        Raises:
            UserError: if training begins and the folder holds the steps of another run.
        """
        run = Path(str(args.output_dir))
        self._folder = Path(self.output_dir or run.with_name(f"{run.name}-steps"))
        if state.global_step == 0 and any(self._folder.glob("step-*.safetensors")):
            raise UserError(f"{self._folder} holds the steps of another run: give another folder")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep θ as it is before the step.

        Args:
            args: the trainer's.
            state: the trainer's.
            control: the trainer's.
            kwargs: among them `model`.
        """
        if state.is_world_process_zero:
            self._before = {n: p.detach().clone() for n, p in trained(kwargs["model"]).items()}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write how θ has changed.

        Args:
            args: the trainer's.
            state: the trainer's; it still counts the step before.
            control: the trainer's.
            kwargs: among them `model`.
        """
        if not self._before:
            return
        now = trained(kwargs["model"])
        change = {n: difference(now[n].detach(), old).cpu() for n, old in self._before.items()}
        self._before = {}
        path = self._folder / f"step-{state.global_step + 1:08d}.safetensors"
        passes = "bfloat16" if args.bf16 else "float16" if args.fp16 else "as the weights"
        write_tensors(path, change, {"step": str(state.global_step + 1), "passes": passes})


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training moves, by canonical name, a tied one once."""
    everything = named_parameters(inner_model(model))
    return {name: p for name, p in everything.items() if p.requires_grad}
