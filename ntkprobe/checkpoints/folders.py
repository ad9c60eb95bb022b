"""The checkpoints of a run, in order, under the names that trainers give their folders."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .completeness import ADAPTER, FSDP, FULL, SHARDED, SPLIT, pickled_weights, read_marker
from .headers import Incomplete

# Exactly these: interrupted trainers leave folders such as tmp-checkpoint-7 behind.
NAME = re.compile(r"checkpoint-(\d{1,18})")
STEPS = (NAME, re.compile(r"step_(\d{1,18})"), re.compile(r"step-(\d{1,18})"))
"""Names that tell the step: of transformers' Trainer and all trainers built on it (TRL, axolotl,
LLaMA-Factory, Unsloth), of torchtune and open-instruct, of torchtitan."""

EPOCHS = (re.compile(r"epoch_(\d{1,18})"), re.compile(r"epoch-(\d{1,18})"))
"""Names that tell an epoch, counted from 0: of torchtune and open-instruct."""


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A folder that holds, or will hold, the model after `step` optimiser steps."""

    step: int
    path: Path


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run by step: its numbered folders, or itself as one.

    The folders are those of the first pattern of `STEPS` and `EPOCHS` that any has. The model that
    a trainer saves at its end in the run's own folder is one more checkpoint, where its
    `trainer_state.json` tells a step beyond all others.

    Args:
        run: an output folder of a trainer, or one saved model or adapter, whose step is the one
            that its name or its `trainer_state.json` tells, else 0.

    Returns:
        The checkpoints, complete or not; empty if the folder holds none (yet). Where folders tell
        an epoch only, the step of `epoch_0` is 1 (`counts_epochs`).

    Raises:
        UserError: if there is no such folder.
    """
    if not run.is_dir():
        raise UserError(f"no folder {run}: --ckpt-dir takes a training run or one checkpoint")
    pattern = _pattern_of(run)
    if pattern is not None:
        numbered = _numbered(run, pattern)
        return numbered if pattern in EPOCHS else [*numbered, *_saved_last(run, numbered)]
    return [Checkpoint(_step_of(run), run)] if _is_lone(run) else []


def counts_epochs(run: Path) -> bool:
    """Return whether the steps of a run's checkpoints are epochs: their names tell no more."""
    return run.is_dir() and _pattern_of(run) in EPOCHS


def saved_models(run: Path) -> list[str]:
    """Return which folders in a run hold a model or adapter of a name that tells no step."""
    children = sorted(child for child in run.iterdir() if child.is_dir()) if run.is_dir() else []
    return [child.name for child in children if _is_lone(child)]


def models_inside(folder: Path) -> str:
    """Return the end of a message about a folder that is no model: which models are in it.

    Args:
        folder: what was named.

    Returns:
        A text that begins with `;`; empty where there are none.
    """
    inside = saved_models(folder)
    more = f" and {len(inside) - 4} more" if len(inside) > 4 else ""
    return f"; it holds models in {', '.join(inside[:4])}{more}: name one of these" * bool(inside)


def _pattern_of(run: Path) -> re.Pattern[str] | None:
    """Return the first pattern that tells a run's checkpoints; None where none does.

    `checkpoint-N` is a name that trainers alone give, before they write anything into it; of the
    others a folder has to hold weights, since a model may have a folder of that name beside it.
    """
    for pattern in (*STEPS, *EPOCHS):
        found = _numbered(run, pattern)
        if found and (pattern is NAME or any(_is_lone(each.path) for each in found)):
            return pattern
    return None


def _numbered(run: Path, pattern: re.Pattern[str]) -> list[Checkpoint]:
    """Return the folders of one pattern by step; epochs are counted from 0, steps are not."""
    first = int(pattern in EPOCHS)
    matches = [(pattern.fullmatch(child.name), child) for child in run.iterdir()]
    return sorted(
        Checkpoint(int(m[1]) + first, child) for m, child in matches if m and child.is_dir()
    )


def _saved_last(run: Path, numbered: list[Checkpoint]) -> list[Checkpoint]:
    """Return the model in the run's own folder, where it is known to be of a later step."""
    if not _is_lone(run):
        return []
    last = Checkpoint(_step_of(run), run)
    return [last] if last.step > numbered[-1].step else []


def _is_lone(folder: Path) -> bool:
    """Return whether a folder is one checkpoint: it has weights, be they of a kind not read."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError:
        return False
    configured = names & {"config.json", "adapter_config.json"}
    unread = names & set(SPLIT) or pickled_weights(sorted(names))
    sharded = FSDP in names or any(name.endswith(".distcp") for name in names)
    return bool(names & {FULL, SHARDED, ADAPTER} or sharded or (configured and unread))


def _step_of(folder: Path) -> int:
    name = folder.resolve().name
    for pattern in (*STEPS, *EPOCHS):
        if named := pattern.fullmatch(name):
            return int(named[1]) + int(pattern in EPOCHS)
    try:
        return read_marker(folder).step
    except (Incomplete, UserError):
        return 0
