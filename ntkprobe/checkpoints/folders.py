"""The checkpoints of a run, in order."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .completeness import ADAPTER, FULL, SHARDED, pickled_weights
from .headers import Incomplete
from .markers import read_marker

# Exactly this: interrupted trainers leave folders such as tmp-checkpoint-7 behind.
NAME = re.compile(r"checkpoint-(\d{1,18})")


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A folder that holds, or will hold, the model after `step` optimiser steps."""

    step: int
    path: Path


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run by step: its `checkpoint-N` folders, or itself as one.

    Args:
        run: an output folder of transformers' Trainer, or one saved model or adapter, whose step is
            the one that its name or its `trainer_state.json` tells, else 0.

    Returns:
        The checkpoints, complete or not; empty if the folder holds none (yet).

    Raises:
        UserError: if there is no such folder.
    """
    if not run.is_dir():
        raise UserError(f"no folder {run}: --ckpt-dir takes a training run or one checkpoint")
    children = [(NAME.fullmatch(child.name), child) for child in run.iterdir()]
    numbered = [Checkpoint(int(m[1]), child) for m, child in children if m and child.is_dir()]
    if numbered:
        return sorted(numbered)
    return [Checkpoint(_step_of(run), run)] if _is_lone(run) else []


def _is_lone(folder: Path) -> bool:
    """Return whether a folder is one checkpoint: it has weights, be they of a kind not read."""
    names = {entry.name for entry in folder.iterdir()}
    configured = names & {"config.json", "adapter_config.json"}
    return bool(names & {FULL, SHARDED, ADAPTER} or (configured and pickled_weights(sorted(names))))


def _step_of(folder: Path) -> int:
    named = NAME.fullmatch(folder.resolve().name)
    if named:
        return int(named[1])
    try:
        return read_marker(folder).step
    except (Incomplete, UserError):
        return 0
