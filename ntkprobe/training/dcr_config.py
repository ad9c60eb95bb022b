"""Settings of DCR, the contrastive stage, with the paper's values as defaults."""

from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .config import StageConfig

CHOICES = {
    "weights": ("paper", "sun2020"),
    "pooling": ("last", "mean"),
    "nll_on": ("prompt", "response", "corpus"),
    "sampling": ("balanced", "natural"),
}

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
