"""Whether a folder is a complete checkpoint, by its marker, its structure and its time stamps.

`transformers` makes the folder under its final name first, then the weights, `trainer_state.json`
last, without a single fsync; with large optimisers minutes lie between. That last file is therefore
the marker of a complete checkpoint. A run started again in the same folder leaves old markers
beside new weights, which only the times tell.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from .headers import Incomplete, read_header, read_index, read_json, regular_file

FULL, SHARDED, ADAPTER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
MARKER = "trainer_state.json"  # the Trainer writes it last
UNFINISHED = "checkpoint-is-incomplete.txt"  # transformers writes it first and removes it last
PICKLES = (".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
BESIDE_WEIGHTS = re.compile(
    r"(optimizer|scheduler|sampler|dl_state_dict|scaler|training_args)(_\d+)?\b.*"
    r"|.*rng_state.*|(random_states|custom_checkpoint)_\d+\.pkl"
)
"""Pickles that a trainer, or accelerate's `save_state`, leaves in a checkpoint besides weights."""

SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
RANK_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""What transformers saves of each process; beside one, it reads all safetensors as shards."""

FSDP = "pytorch_model_fsdp_0"
SPLIT = {
    FSDP: "FSDP shards: measure them with --convert, or merge them with `accelerate merge-weights`",
    ".metadata": "shards of torch.distributed.checkpoint: measure them with --convert, or merge"
    " them with `accelerate merge-weights`",
    "latest": "DeepSpeed shards: measure them with --convert, convert them with zero_to_fp32.py"
    " --safe_serialization, or train with stage3_gather_16bit_weights_on_model_save",
}
"""What marks a checkpoint in shards, and what to do with it."""


@dataclass(frozen=True)
class FileStamp:
    """One weight file as it was when looked at; equal stamps mean that nobody wrote to it since."""

    name: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Readiness:
    """The verdict on a folder.

    Attributes:
        state: `ready`; `unmarked` (whole, but no marker vouches for it: ready once it has settled);
            `incomplete` (look again later); `refused` (will never be read).
        reason: why, when it is not ready.
        kind: a `full` model or an `adapter`.
        weights: the files that hold the weights.
    """

    state: Literal["ready", "unmarked", "incomplete", "refused"]
    reason: str = ""
    kind: Literal["full", "adapter"] = "full"
    weights: tuple[FileStamp, ...] = ()


@dataclass(frozen=True)
class Marker:
    """The contents of a checkpoint's `trainer_state.json`.

    Attributes:
        step: its `global_step`.
        max_steps: the last step of training; 0 if not given.
        save_steps: steps between two checkpoints; 0 if not given.
        mtime_ns: when the file was written, by the file system's clock.
    """

    step: int
    max_steps: int
    save_steps: int
    mtime_ns: int


def readiness(folder: Path) -> Readiness:
    """Return the state of a checkpoint folder, without changing anything in it."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
        kind = _kind(names)
        weights = tuple(stamp(folder / name) for name in _weight_files(folder, names, kind))
    except Incomplete as why:
        return Readiness("incomplete", str(why))
    except FileNotFoundError:
        return Readiness("incomplete", "the folder is gone")
    except UserError as why:
        return Readiness("refused", str(why))
    except OSError as why:
        return Readiness("refused", f"{folder} cannot be read: {why}")
    doubt = _marker_mismatch(folder, names, weights)
    return Readiness("unmarked" if doubt else "ready", doubt, kind, weights)


def read_marker(folder: Path) -> Marker:
    """Return the marker of a checkpoint.

    Raises:
        Incomplete: if there is none, or it is cut short.
        UserError: if it is not a regular file.
    """  # ruff: ignore[docstring-extraneous-exception]
    path = folder / MARKER
    state = read_json(path)
    named = ("global_step", "max_steps", "save_steps")
    step, last, every = (_whole_number(state.get(key)) for key in named)
    return Marker(step, last, every, path.stat().st_mtime_ns)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a model or adapter, each checked to be whole.

    Args:
        folder: a checkpoint, or what the user named.

    Returns:
        Their paths.

    Raises:
        UserError: if there is no whole one, or it is of a kind that is not read.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir())
        return [folder / name for name in _weight_files(folder, names, _kind(names))]
    except (Incomplete, OSError) as error:
        raise UserError(f"{folder} is no model: {error}") from error


def require_safetensors(folder: Path, wanted: str) -> None:
    """Refuse a folder with pickled weights in place of a file of safetensors.

    Args:
        folder: which need not be there.
        wanted: the file's name.

    Raises:
        UserError: saying how to convert them.
    """  # ruff: ignore[docstring-extraneous-exception]
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if wanted not in names:
        _refuse_pickles(names, folder)


def require_one_form(folder: Path) -> None:
    """Refuse shards of single processes beside whole weights: transformers would mix the two.

    A pin holds the judged files alone, so that this is for folders that are loaded themselves.

    Raises:
        UserError: naming one.
    """
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if shards := [name for name in names if RANK_SHARD.fullmatch(name)]:
        raise UserError(
            f"{folder} holds {shards[0]} beside whole weights, and transformers mixes the two: "
            "move the one or the other away"
        )


def pickled_weights(names: Sequence[str]) -> list[str]:
    """Return which of a folder's files are pickles that may hold weights."""
    return [n for n in names if n.endswith(PICKLES) and not BESIDE_WEIGHTS.fullmatch(n)]


def _refuse_pickles(names: Sequence[str], folder: Path | None = None) -> None:
    """Raise if there are pickled weights.

    Raises:
        UserError: saying how to convert them.
    """
    if pickled := pickled_weights(names):
        adapter = "adapter_config.json" in names
        saver = "adapter (peft)" if adapter else "model"
        where = f"{folder / pickled[0]}" if folder else pickled[0]
        raise UserError(
            f"{where} is a pickle, which can run code: only safetensors are read; load the {saver} "
            "where you trust it, and save it again with save_pretrained(safe_serialization=True)"
        )


def stamp(path: Path) -> FileStamp:
    """Return the stamp of a weight file.

    Raises:
        Incomplete: if it is gone.
        UserError: if it is not a regular file inside its folder.
    """  # ruff: ignore[docstring-extraneous-exception]
    info = regular_file(path)
    return FileStamp(path.name, info.st_size, info.st_mtime_ns, info.st_ino)


def _kind(names: Sequence[str]) -> Literal["full", "adapter"]:
    """Return what kind of checkpoint the file names make.

    Raises:
        Incomplete: if none (yet).
        UserError: if one whose format we do not read.
    """
    if UNFINISHED in names:
        raise Incomplete(f"{UNFINISHED} is there")
    partial = [name for name in names if name.startswith(".tmp")]
    if partial:
        raise Incomplete(f"{partial[0]} is being written")
    adapter = ADAPTER in names or "adapter_config.json" in names
    if ADAPTER in names or (not adapter and (FULL in names or SHARDED in names)):
        return "adapter" if adapter else "full"
    for name, advice in SPLIT.items():
        if name in names:
            raise UserError(f"weights are {advice}")
    if any(map(RANK_SHARD.fullmatch, names)):
        raise UserError(
            "weights are transformers' shards of each process: merge them into another folder with "
            "transformers.distributed.checkpoint.consolidate_distributed_checkpoint"
        )
    _refuse_pickles(names)
    if adapter:
        return "adapter"  # its weights are still to come
    raise Incomplete("no weights (model.safetensors or adapter_model.safetensors)")


def _weight_files(folder: Path, names: Sequence[str], kind: str) -> list[str]:
    """Return the names of all weight files, each checked to be whole.

    Raises:
        Incomplete: if one is not, or it is not clear which files count.
    """
    if FULL in names and SHARDED in names:
        raise Incomplete(f"both {FULL} and {SHARDED}: one of them is left over; remove it")
    if kind == "full" and "config.json" not in names:
        raise Incomplete(
            "no config.json beside the weights (accelerate's save_state writes none): save the "
            "model with save_pretrained"
        )
    read_json(folder / ("adapter_config.json" if kind == "adapter" else "config.json"))
    if kind == "full" and SHARDED in names:
        return _shards(folder, names)
    weights = [ADAPTER if kind == "adapter" else FULL]
    for name in weights:
        read_header(folder / name)
    return weights


def _shards(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the names of the shards, whose tensors must be those that the index lists, each once.

    Raises:
        Incomplete: if they differ: an index or a shard may be an older one's.
    """
    listed = read_index(folder / SHARDED)
    stored = {name: set(read_header(folder / name).spans) for name in listed}
    for name, tensors in stored.items():
        if odd := sorted(tensors ^ listed[name]):
            difference = "does not list" if odd[0] in tensors else "puts there"
            raise Incomplete(f"{name} and {SHARDED} differ: the index {difference} {odd[0]}")
    if over := sorted(n for n in names if SHARD.fullmatch(n) and n not in listed):
        raise Incomplete(f"{over[0]} is not listed in {SHARDED}: one of them is left over")
    return list(stored)


def _marker_mismatch(folder: Path, names: Sequence[str], weights: Sequence[FileStamp]) -> str:
    """Return why the marker does not vouch for these weights, or nothing if it does."""
    try:
        marker = read_marker(folder)
    except (Incomplete, UserError) as why:
        return str(why)
    number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    if number and int(number[1]) != marker.step:
        return f"trainer_state.json is of step {marker.step}"
    if any(weight.mtime_ns > marker.mtime_ns for weight in weights):
        return "weights newer than trainer_state.json"
    return ""


def _whole_number(value: Any) -> int:
    """Return a non-negative whole number; 0 for anything else (`save_steps` may be a share)."""
    return value if isinstance(value, int) and value > 0 else 0
