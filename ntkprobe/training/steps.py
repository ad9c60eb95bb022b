"""The steps that an optimiser really takes, recorded while it trains.

FOLDER/step-00000001.safetensors    Δθ of step 1 by canonical name; of an adapter alone, with LoRA
"""

from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import UserError
from ..models.parameters import difference, named_parameters
from ..models.wrappers import inner_model
from ..storage import write_tensors


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
