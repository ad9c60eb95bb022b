"""Settings of both stages: transformers' TrainingArguments and a few fields more."""

import warnings
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from ..checkpoints import LoadSettings
from ..errors import UserError

PLACES = ("output_dir", "overwrite", "logging_dir", "local_rank", "resume_from_checkpoint")
"""Where a run is, which is no setting of it."""


def _default(one: Field) -> Any:
    """Return a dataclass field's default."""
    return one.default if one.default_factory is MISSING else one.default_factory()


@dataclass
class StageConfig(TrainingArguments):
    """TrainingArguments with the paper's learning rate of both stages, quiet and offline.

    Attributes:
        template: `auto` (chat where the tokenizer has one, else raw), `chat`, `raw`, or a file.
        max_length: tokens at most.
        dtype: precision of the weights in memory; `bf16=True` computes in bfloat16 on top of it.
        attn_implementation: as in transformers.
        save_at: save after these steps (0: before training) instead of every `save_steps`.
        overwrite: begin anew, removing what an earlier run left in the folder.
        strict: prompts shared with another stage or an evaluation are a mistake, not a remark.
    """

    learning_rate: float = 1e-4
    logging_steps: float = 1
    report_to: str | list[str] | None = "none"
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    seed: int = 0
    disable_tqdm: bool | None = False
    template: str = "auto"
    max_length: int = 1024
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    save_at: list[int] | None = None
    overwrite: bool = False
    strict: bool = False

    # May differ between a run and its continuation: none of them changes the trained weights.
    HARMLESS: ClassVar[frozenset[str]] = frozenset(
        "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor disable_tqdm "
        "log_level logging_first_step logging_steps logging_strategy report_to run_name "
        "save_at save_steps save_strategy save_total_limit strict use_cpu".split()
    )

    def __post_init__(self) -> None:
        # transformers rewrites some fields (report_to, optim); what was given is what replays.
        self._given = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        if self.save_at:
            self.save_strategy = "no"
        if self.max_length < 1:
            raise UserError(f"max_length is {self.max_length}: give 1 or more")
        with warnings.catch_warnings():
            # transformers 5.3 knows no other name than the one that 5.23 deprecates.
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            super().__post_init__()

    def loading(self) -> LoadSettings:
        """Return how the model is loaded; the Trainer moves it to its device."""
        return LoadSettings(
            dtype=self.dtype, device="cpu", attn_implementation=self.attn_implementation
        )

    def _declared(self) -> set[str]:
        """Return the names of the fields that the stages themselves declare."""
        stages = [kind for kind in type(self).__mro__ if issubclass(kind, StageConfig)]
        return {name for kind in stages for name in kind.__annotations__} & set(self._given)

    def defaults(self) -> dict[str, Any]:
        """Return the defaults of what a stage declares, as `settings` has them."""
        declared = self._declared() - set(PLACES)
        return {f.name: _plain(_default(f)) for f in fields(self) if f.name in declared}

    def settings(self) -> dict[str, Any]:
        """Return all fields that a stage declares, and every other given a value of its own."""
        declared = self._declared()
        kept = {
            name: getattr(self, name) if name in declared else v for name, v in self._given.items()
        }
        return {
            name: _plain(value)
            for name, value in kept.items()
            if name not in PLACES and (name in declared or value != _USUAL[name])
        }


_USUAL = {f.name: _default(f) for f in fields(TrainingArguments) if f.init}
"""transformers' defaults, as written: an instance would reset the state of the processes."""


def _plain(value: Any) -> Any:
    """Return a value as YAML can hold it."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)
