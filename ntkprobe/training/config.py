"""Settings of both stages: transformers' TrainingArguments and a few fields more.

The paper's values are the defaults: of DCR, the contrastive stage, and of SFT, the alignment stage.
"""

import warnings
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from ..checkpoints import LoadSettings
from ..errors import UserError
from .ranges import require_numbers

PLACES = ("output_dir", "overwrite", "logging_dir", "local_rank", "resume_from_checkpoint")
"""Where a run is, which is no setting of it."""


def _default(one: Field) -> Any:
    """Return a dataclass field's default."""
    return one.default if one.default_factory is MISSING else one.default_factory()


@dataclass
class StageConfig(TrainingArguments):
    """TrainingArguments with the paper's learning rate of both stages, quiet and offline.

    Attributes:
        template: `auto` (chat where the tokenizer has one, else raw), `chat`, `raw`, `plain`, a
            shipped one (`qwen2.5`, `llama-3`), or a Jinja file.
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

    WITHOUT_EFFECT: ClassVar[dict[str, str]] = dict.fromkeys(
        ("eval_strategy", "load_best_model_at_end"), "training here has no data to evaluate on"
    )
    """Settings of transformers' that cannot be in force here, and why."""

    def __post_init__(self) -> None:
        # transformers rewrites some fields (report_to, optim); what was given is what replays.
        self._given = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        if self.save_at:
            self.save_strategy = "no"
        require_numbers(self, self._declared())
        self._require_in_force()
        if self.bf16 and not self.use_cpu and not is_torch_bf16_gpu_available():
            raise UserError(
                "bf16 (--bf16) needs a GPU that computes in bfloat16, and there is none here: leave"
                " it out, or take the CPU, which can do so too: use_cpu (--device cpu)"
            )
        with warnings.catch_warnings():
            # transformers 5.3 knows no other name than the one that 5.23 deprecates.
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            super().__post_init__()

    def _require_in_force(self) -> None:
        """Refuse settings of transformers' that would be recorded, and change nothing.

        Raises:
            UserError: for one that has another value than transformers' own.
        """
        for name, why in self.WITHOUT_EFFECT.items():
            value = getattr(self, name, _USUAL.get(name))
            if value and value != _USUAL.get(name) and _plain(value) != "no":
                raise UserError(f"{name} is {_plain(value)!r}: {why}; leave it out")

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


CHOICES = {
    "weights": ("paper", "sun2020"),
    "pooling": ("last", "mean"),
    "nll_on": ("prompt", "response", "corpus"),
    "sampling": ("balanced", "natural"),
}

LEAST_PROMPTS = 3
"""In a step of the contrastive stage: fewer have a loss of zero, whatever they are."""

SAVE_STEPS = StageConfig.save_steps
"""transformers' default, which stands for: save after every epoch."""


@dataclass
class DCRConfig(StageConfig):
    """Settings of the contrastive stage; the defaults are the paper's (A.2) for Qwen2.5-1.5B.

    The paper leaves open, and these defaults choose: `detach`, `pooling`, `nll_on`, the schedule
    (constant), the clipping of gradients and the weight decay (transformers'), and float32.

    Attributes:
        layer: block at whose output the loss is; it and all before it are trained. Must be given.
        margin: m of the circle loss.
        scale: its gamma.
        weights: `paper` (Eq. 5 to the letter) or `sun2020` (the cited loss).
        detach: treat the loss's weights as constants.
        pooling: `last` prompt token or `mean` over the prompt.
        nll_weight: lambda; 0 leaves the regulariser out, and the forward pass ends at `layer`.
        nll_on: `prompt` (its own tokens), `response` (of prompts that have one) or a `corpus`.
        sampling: `balanced` groups in each batch, or as they come (`natural`).
        n_seemingly_toxic: seemingly toxic prompts to draw; None takes all.
        n_toxic: toxic prompts to draw; None takes all.
        toxic_ratio: toxic prompts for each seemingly toxic one (Table 4) instead of `n_toxic`.
        lora_rank: 0 trains all parameters up to `layer`; else LoRA of this rank on their blocks.
        lora_alpha: scale of the adapter, divided by its rank.
        lora_dropout: on the adapter's input.
        lora_targets: linear maps to adapt by name; None takes all of a block.
    """

    layer: int = 0
    margin: float = 0.25
    scale: float = 16.0
    weights: str = "paper"
    detach: bool = False
    pooling: str = "last"
    nll_weight: float = 0.001
    nll_on: str = "prompt"
    sampling: str = "balanced"
    n_seemingly_toxic: int | None = None
    n_toxic: int | None = None
    toxic_ratio: float | None = None
    lora_rank: int = 0
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_targets: list[str] | None = None
    per_device_train_batch_size: int = 32
    num_train_epochs: float = 3.0
    lr_scheduler_type: Any = "constant"
    save_strategy: Any = "epoch"

    WITHOUT_EFFECT: ClassVar[dict[str, str]] = StageConfig.WITHOUT_EFFECT | {
        "label_smoothing_factor": "the contrastive stage has a loss of its own",
        "train_sampling_strategy": "the contrastive stage draws its batches by --sampling",
    }

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}: choose from {list(allowed)}")
        self.margin, self.scale = float(self.margin), float(self.scale)  # YAML's 16 is whole
        if not 0 < self.margin < 1 or self.scale <= 0 or self.nll_weight < 0:
            raise UserError("circle loss needs 0 < margin < 1, scale > 0 and nll_weight >= 0")
        for name in ("n_seemingly_toxic", "n_toxic"):
            number = getattr(self, name)
            if number is not None and (type(number) is not int or number < 1):
                raise UserError(f"{name} is {number!r}: give 1 or more, or leave it out for all")
        if self.n_toxic is not None and self.toxic_ratio is not None:
            raise UserError("n_toxic and toxic_ratio both say how many toxic prompts: give one")
        if self.save_steps != SAVE_STEPS and self.save_strategy == "epoch":
            self.save_strategy = "steps"
        super().__post_init__()
        self._require_pairs()

    def _require_pairs(self) -> None:
        """Refuse steps of so few prompts that none has both a positive and a negative.

        Raises:
            UserError: with the number of prompts in a step.
        """
        step = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        if step < LEAST_PROMPTS:
            raise UserError(
                f"a step of {step} prompts has no pairs to learn from: two of one group and one of "
                f"the other are {LEAST_PROMPTS}, and 32 the paper's number (--batch-size, --set "
                "gradient_accumulation_steps)"
            )


@dataclass
class SFTConfig(StageConfig):
    """Settings of the alignment stage; the defaults are the paper's (A.3) for Qwen2.5-1.5B.

    The paper leaves open, and these defaults choose: `lora_targets`, `max_length`, the schedule
    after the warm-up, the clipping of gradients and the weight decay (transformers'), and float32.

    Attributes:
        recipe: which data are mixed: a module of `training.recipes`, such as `stl`.
        n_general: normal pairs to draw.
        n_safe: refusals to draw.
        n_triggers: answered refusal triggers; None for as many as refusals.
        n_seemingly: for the recipe `influence`: how many of the answered seemingly toxic prompts,
            from the first on; None for a tenth of them.
        prefill: a beginning of an answer, put before refusals and not learnt; None for none.
        prefill_share: of the refusals that get it.
        loss_on: `response` tokens only, as the paper's Eq. 1 has it, or `all` tokens, as the
            authors' code, which we know at second hand, is said to do.
        system: a system message; None leaves the template's own.
        lora_rank: r.
        lora_alpha: the adapter is scaled by alpha / r.
        lora_dropout: on the adapter's input.
        lora_targets: modules to adapt by name; None finds the projections to q, k and v.
    """

    recipe: str = "stl"
    n_general: int = 20000
    n_safe: int = 1000
    n_triggers: int | None = None
    n_seemingly: int | None = None
    prefill: str | None = None
    prefill_share: float = 0.5
    loss_on: str = "response"
    system: str | None = None
    lora_rank: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_targets: list[str] | None = None
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 32
    num_train_epochs: float = 3.0
    warmup_steps: float = 0.03
    save_steps: float = 20

    def __post_init__(self) -> None:
        if self.loss_on not in ("response", "all"):
            raise UserError(f"loss_on is {self.loss_on!r}: choose 'response' or 'all'")
        if self.n_general < 0 or self.n_safe < 0 or self.lora_rank < 1:
            raise UserError("n_general and n_safe cannot be negative, lora_rank not less than 1")
        if (self.n_triggers or 0) < 0 or not 0 <= self.prefill_share <= 1:
            raise UserError("n_triggers cannot be negative, prefill_share is from 0 to 1")
        if self.n_seemingly is not None and self.n_seemingly < 1:
            raise UserError(f"n_seemingly={self.n_seemingly}: give 1 or more")
        super().__post_init__()


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
