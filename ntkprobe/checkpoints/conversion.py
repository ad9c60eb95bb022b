"""Shards of FSDP and DeepSpeed, converted into ordinary checkpoints by accelerate and deepspeed.

Such shards are pickles, or have an index that is one: to read them can run code, so that this is
done only where a user asks for it. The run's own folder is never written to.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError, one_line
from ..storage import write_json
from .completeness import ADAPTER, FULL, SPLIT, readiness
from .folders import Checkpoint, counts_epochs, find_checkpoints
from .headers import Incomplete, read_header, read_json, regular_file
from .pins import JSON_FILES, PLAIN_FILES

SOURCE = "converted.json"
"""Beside converted weights: the folder they are of, and its files as they were."""

_CONFIGS = ("config.json", *JSON_FILES, *PLAIN_FILES)


def convert_run(run: Path, output: Path, model: str | None = None) -> Path:
    """Convert every checkpoint of a run that is in shards; what was converted before is not again.

    Args:
        run: the run, or one checkpoint; only read.
        output: the folder that gets a checkpoint of the same name for each of the run's; one that
            is in no shards is a link.
        model: a folder whose configuration and tokenizer are taken where neither the checkpoint nor
            the run holds any, as with FSDP.

    Returns:
        `output`, which is a run; `run` itself where nothing is in shards.

    Raises:
        UserError: if a checkpoint cannot be converted, or no configuration is known.
    """
    found = find_checkpoints(run)
    if not any(_shards(checkpoint.path) for checkpoint in found):
        return run
    if output.resolve().is_relative_to(run.resolve()):
        raise UserError(f"{output} lies inside the run, which is only read: choose another")
    output.mkdir(parents=True, exist_ok=True)
    for checkpoint in found:
        target = _target(checkpoint, run, output)
        if _shards(checkpoint.path):
            _convert(checkpoint, run, target, model)
        elif not target.exists():
            target.unlink(missing_ok=True)
            target.symlink_to(checkpoint.path.resolve(), target_is_directory=True)
    return output


def planned_conversions(run: Path, output: Path) -> dict[Path, Path | None]:
    """Return which checkpoints of a run `convert_run` converts; nothing is written or unpickled.

    Args:
        run: as there.
        output: as there.

    Returns:
        Every checkpoint in shards, with its folder in `output` if that holds it as it is now.
    """
    found = {c.path: _target(c, run, output) for c in find_checkpoints(run) if _shards(c.path)}
    return {path: to if _is_converted(path, to) else None for path, to in found.items()}


def _target(checkpoint: Checkpoint, run: Path, output: Path) -> Path:
    step = checkpoint.step
    return output / (f"epoch_{step - 1}" if counts_epochs(run) else f"checkpoint-{step}")


def _is_converted(source: Path, target: Path) -> bool:
    return (target / SOURCE).is_file() and _recorded(target) == _stamps(source)


def _shards(folder: Path) -> str | None:
    """Return the entry of `SPLIT` that marks a folder in shards; None where its weights are read.

    Whole weights beside shards, which some trainers save as well, are read.
    """
    verdict = readiness(folder)
    marked = next((name for name in SPLIT if (folder / name).exists()), None)
    return marked if verdict.state == "refused" else None


def _convert(checkpoint: Checkpoint, run: Path, target: Path, model: str | None) -> None:
    """Convert one checkpoint, unless `target` holds what its files are now.

    Raises:
        UserError: if it cannot be converted.
    """
    source, about = checkpoint.path, _stamps(checkpoint.path)
    if _is_converted(source, target):
        return
    marked = _shards(source)
    assert marked is not None
    said = f"{source}: {SPLIT[marked].split(':')[0]}, converted into {target}"
    print(one_line(said), file=sys.stderr)
    hidden = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        _merged(_CONVERTERS[marked], source, hidden)
        _complete(hidden, [source, run, *([Path(model)] if model else [])])
    except UserError:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    if (source / "trainer_state.json").is_file():  # last: it vouches for the weights
        shutil.copyfile(source / "trainer_state.json", hidden / "trainer_state.json")
    write_json(hidden / SOURCE, about)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(hidden, target)


def _merged(convert: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    """Run a converter.

    Raises:
        UserError: if it fails, and why.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # no Exception

    try:
        convert(source, target)
    except UserError:
        raise
    except (Exception, CheckpointException) as error:  # the bytes are anybody's
        raise UserError(f"{source} cannot be converted: {one_line(error)[:200]}") from error


def _merge_fsdp(source: Path, target: Path) -> None:
    from accelerate.utils import merge_fsdp_weights

    merge_fsdp_weights(str(source / "pytorch_model_fsdp_0"), str(target))


def _merge_distributed(source: Path, target: Path) -> None:
    from accelerate.utils import merge_fsdp_weights

    merge_fsdp_weights(str(source), str(target))


def _merge_deepspeed(source: Path, target: Path) -> None:
    """Run deepspeed's own converter; the script of that name in a checkpoint is not run.

    Raises:
        UserError: if deepspeed is not installed.
    """
    try:
        from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict
    except ImportError as error:
        raise UserError(
            f"{source} holds DeepSpeed shards, which deepspeed converts: pip install deepspeed"
        ) from error
    convert_zero_checkpoint_to_fp32_state_dict(str(source), str(target), safe_serialization=True)


_CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "pytorch_model_fsdp_0": _merge_fsdp,
    ".metadata": _merge_distributed,
    "latest": _merge_deepspeed,
}


def _complete(folder: Path, sources: list[Path]) -> None:
    """Put configuration and tokenizer beside converted weights, of the first folder with each.

    Raises:
        UserError: if nothing says what model it is.
    """
    for name in _CONFIGS:
        found = next((place / name for place in sources if (place / name).is_file()), None)
        if found is not None and regular_file(found) and not (folder / name).exists():
            shutil.copyfile(found, folder / name)
    weights = folder / FULL
    if weights.is_file() and any(".lora_" in key for key in read_header(weights).spans):
        weights.rename(folder / ADAPTER)
    adapter = (folder / ADAPTER).is_file()
    needed = "adapter_config.json" if adapter else "config.json"
    if not adapter:
        (folder / "adapter_config.json").unlink(missing_ok=True)
    if not (folder / needed).is_file():
        raise UserError(
            f"no {needed} in {' or '.join(map(str, sources))}: name a folder that has the model's "
            "configuration with --model"
        )


def _stamps(folder: Path) -> dict[str, object]:
    """Return a folder and its files' sizes and times, which say whether it was written anew."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    states = {str(f.relative_to(folder)): [f.stat().st_size, f.stat().st_mtime_ns] for f in files}
    return {"of": str(folder.resolve()), "files": states}


def _recorded(target: Path) -> dict[str, object]:
    try:
        return read_json(target / SOURCE)
    except (Incomplete, UserError):
        return {}
