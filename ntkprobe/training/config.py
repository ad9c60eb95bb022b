"""What both stages can be told: transformers' TrainingArguments and a few fields of ours."""

from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cache
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from ..checkpoints import LoadSettings
from ..errors import UserError

PLACES = ("output_dir", "logging_dir", "local_rank", "resume_from_checkpoint")
"""Where a run is, which is no setting of it."""


@dataclass
class StageConfig(TrainingArguments):
    """TrainingArguments with the paper's common settings as defaults, quiet and offline.

    Attributes:
        template: `auto` (chat where the tokenizer has one, else raw), `chat`, `raw`, or a file.
        max_length: tokens at most.
        dtype: precision of the weights in memory; `bf16=True` computes in bfloat16 on top of it.
        attn_implementation: as in transformers.
        save_at: save after these steps (0: before training) instead of every `save_steps`.
        strict: prompts shared with another stage or an evaluation are a mistake, not a remark.
    """

    learning_rate: float = 1e-4
    logging_steps: float = 1
    report_to: str | list[str] | None = "none"
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    seed: int = 0
    template: str = "auto"
    max_length: int = 1024
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    save_at: list[int] | None = None
    strict: bool = False

    # May differ between a run and its continuation: none of them changes the trained weights.
    HARMLESS: ClassVar[frozenset[str]] = frozenset(
        "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor disable_tqdm "
        "log_level logging_first_step logging_steps logging_strategy report_to run_name "
        "save_at save_steps save_strategy save_total_limit strict use_cpu".split()
    )

    def __post_init__(self) -> None:
        if self.save_at:
            self.save_strategy = "no"
        if self.max_length < 1:
            raise UserError(f"max_length is {self.max_length}: give 1 or more")
        super().__post_init__()

    def loading(self) -> LoadSettings:
        """Return how the model is loaded; the Trainer moves it to its device."""
        return LoadSettings(
            dtype=self.dtype, device="cpu", attn_implementation=self.attn_implementation
        )

    def settings(self) -> dict[str, Any]:
        """Return all fields that a stage declares, and every other not at transformers' default."""
        stages = [kind for kind in type(self).__mro__ if issubclass(kind, StageConfig)]
        declared = {name for kind in stages for name in kind.__annotations__}
        plain = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.init}
        usual = _usual()
        return {
            name: value
            for name, value in plain.items()
            if name not in PLACES and (name in declared or value != usual[name])
        }


@cache
def _usual() -> dict[str, Any]:
    """Return transformers' defaults."""
    arguments = TrainingArguments(output_dir="unused")
    return {f.name: _plain(getattr(arguments, f.name)) for f in fields(arguments) if f.init}


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
