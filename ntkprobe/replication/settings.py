"""The scales of a replication (how much is trained and measured), and the user's settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..errors import UserError
from ..settings import Flag, LoadSettings, field_docs
from ..statistics import RESAMPLES

DEVELOPMENT_SEED = 1000
"""Of the runs that settings are chosen by; none of those reported."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The numbers of a scale; `docs/replication.md` has them for `small` and `paper`.

    Attributes:
        dcr_toxic: toxic prompts of DCR, in addition to all of XSTest's safe ones.
        dcr_batch: prompts of an optimiser step.
        dcr_epochs: of DCR.
        dcr_rate: learning rate of DCR.
        depth: the layer of DCR's loss, as a share of all blocks.
        general: normal pairs of SFT.
        safe: refusals of SFT.
        length: tokens of a pair at most.
        batch: pairs that are on the device at a time.
        accumulate: such batches to an optimiser step.
        epochs: of SFT.
        rates: learning rates of SFT, to choose from in this order.
        checkpoints: when to save, as shares of SFT's steps.
        development: toxic, and normal, prompts to choose by.
        along: seemingly toxic, toxic and normal prompts asked at every checkpoint.
        kernel: prompts of each group in the kernel.
        normal: held-out normal prompts and answers.
        pairs: refusals whose influence is measured.
        bounds: prompts of each group in the terms of Proposition 1.
        directions: random directions that these terms are estimated from.
        anchors: prompts of each group that steering is fitted on.
        tokens: of an answer at most.
        limit: prompts of each published set at most; None for all.
        resamples: of every interval; `toy` has fewer.
    """

    dcr_toxic: int = 500
    dcr_batch: int = 32
    dcr_epochs: int = 3
    dcr_rate: float = 1e-4
    depth: float = 13 / 28
    general: int = 20000
    safe: int = 1000
    length: int = 1024
    batch: int = 4
    accumulate: int = 32
    epochs: int = 3
    rates: tuple[float, ...] = (1e-4,)
    checkpoints: tuple[float, ...] = (0, 0.04, 0.1, 0.2, 0.35, 0.55, 0.77, 1)
    development: int = 60
    along: tuple[int, int, int] = (60, 40, 40)
    kernel: int = 25
    normal: int = 100
    pairs: int = 25
    bounds: int = 2
    directions: int = 64
    anchors: int = 64
    tokens: int = 32
    limit: int | None = None
    resamples: int = RESAMPLES

    def steps(self, pairs: int) -> int:
        """Return the optimiser steps over so many pairs."""
        return max(1, -(-pairs // (self.batch * self.accumulate)) * self.epochs)

    def saves(self, steps: int) -> list[int]:
        """Return the steps to save after."""
        return sorted({round(share * steps) for share in self.checkpoints})

    def layer(self, blocks: int) -> int:
        """Return the layer of DCR's loss in a model of so many blocks."""
        return min(max(1, round(self.depth * blocks)), blocks - 1)


SCALES = {
    "small": Scale(
        general=800,
        safe=240,
        length=128,
        batch=8,
        accumulate=1,
        epochs=1,
        rates=(1e-3, 1.5e-3, 2e-3, 3e-3),
        tokens=20,
    ),
    "paper": Scale(tokens=512),
    "toy": Scale(
        dcr_toxic=12,
        dcr_batch=8,
        dcr_epochs=1,
        depth=0.5,
        general=16,
        safe=8,
        length=64,
        batch=4,
        accumulate=1,
        epochs=1,
        rates=(3e-3, 1e-2),
        checkpoints=(0, 1),
        development=4,
        along=(4, 3, 3),
        kernel=2,
        normal=3,
        pairs=2,
        bounds=1,
        directions=2,
        anchors=4,
        tokens=3,
        limit=6,
        resamples=50,
    ),
}
"""`toy` is for tests: its numbers mean nothing."""


_LOADING = field_docs(LoadSettings)


def read_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds in a text.

    Args:
        text: numbers joined by commas.

    Raises:
        UserError: if they are none.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserError(f"--seeds {text!r}: give whole numbers joined by commas, as in 0,1,2")
    return tuple(map(int, parts))


@dataclass(frozen=True, kw_only=True)
class ReplicationSettings:
    """The settings of a replication.

    Attributes:
        model: a chat model: a GGUF file, a folder, or a hub name.
        data: a folder with the files under their published names.
        hub: take what the folder lacks from the Hugging Face hub, where that has it.
        output_dir: where to; what is there already is not done again.
        seeds: of the runs, all of which are repeated with each: numbers joined by commas.
        scale: `small` or `paper`.
        device: where models run.
        dtype: of the weights while training and measuring.
    """

    model: Annotated[str, Flag(metavar="MODEL")]
    data: Annotated[Path | None, Flag(metavar="DIR")] = None
    hub: bool = False
    output_dir: Annotated[Path, Flag(metavar="OUT", default=Path("runs/replication"))]
    seeds: Annotated[tuple[int, ...], Flag(typed=str, default="0,1,2", convert=read_seeds)] = (
        0,
        1,
        2,
    )
    scale: str = "small"
    device: Annotated[str, Flag(help=_LOADING["device"])] = LoadSettings.device
    dtype: Annotated[str, Flag(help=_LOADING["dtype"])] = LoadSettings.dtype

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise UserError(f"no --scale {self.scale!r}: choose small or paper")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError("--seeds: give one or more different numbers, as in 0,1,2")
        if DEVELOPMENT_SEED in self.seeds:
            raise UserError(f"--seeds: {DEVELOPMENT_SEED} is the one that settings are chosen by")

    @property
    def numbers(self) -> Scale:
        """The numbers of the scale."""
        return SCALES[self.scale]
