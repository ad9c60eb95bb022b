"""Pins: folders of hard links to a checkpoint's weights, which no rotation can remove.

The small files are copied, cleaned of what a checkpoint may not ask for; so what transformers loads
is our folder, with exactly the files that were judged, and the checkpoint itself is only ever read.
"""

import json
import os
import shutil
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from .completeness import SHARDED, Readiness, stamp
from .folders import Checkpoint
from .headers import Incomplete, read_json, regular_file
from .safeguards import checked_config, cleaned

JSON_FILES = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
)
PLAIN_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
LARGEST = 512 << 20


@contextmanager
def pinned(
    checkpoint: Checkpoint, verdict: Readiness, pins: Path, *, copy: bool = False
) -> Generator[Path, None, None]:
    """Pin a complete checkpoint while it is read.

    Args:
        checkpoint: what to hold.
        verdict: its readiness, whose weights must still be as they were judged.
        pins: where pins live, best on the checkpoint's file system; the pin is removed in the end.
        copy: where hard links fail, copy the weights, as a run that still deletes needs, instead of
            pointing at them.

    Yields:
        A folder that transformers and peft can load.

    Raises:
        Incomplete: if the checkpoint was changed or deleted meanwhile, or while the caller read it.
        FileNotFoundError: if the caller missed some other file.
    """
    own = pins / f"{socket.gethostname()}-{os.getpid()}" / uuid4().hex[:8]
    pin = own / checkpoint.path.resolve().name
    pin.mkdir(parents=True)
    try:
        for weight in verdict.weights:
            _hold(checkpoint.path / weight.name, pin / weight.name, copy)
        _copy_small_files(checkpoint.path, pin, verdict.kind)
        _require_unchanged(checkpoint.path, verdict)
        yield pin
        _require_untouched(pin, verdict)
    except FileNotFoundError as error:
        if str(checkpoint.path) in str(error.filename):
            raise Incomplete("deleted while it was read") from error
        raise
    finally:
        shutil.rmtree(own, ignore_errors=True)


def remove_stale_pins(pins: Path) -> None:
    """Remove the pins of this machine's dead processes, which occupy a checkpoint's disk space."""
    host = socket.gethostname()
    for pin in pins.glob(f"{host}-*"):
        number = pin.name.removeprefix(f"{host}-")
        if number.isdigit() and not _alive(int(number)):
            shutil.rmtree(pin, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _hold(source: Path, target: Path, copy: bool) -> None:
    """Make `target` a hard link to the file `source`, or what comes nearest to it."""
    real = source.resolve(strict=True)
    try:
        os.link(real, target)
    except OSError:  # another file system, or one without hard links
        if copy:
            shutil.copyfile(real, target)
        else:
            target.symlink_to(real)


def _copy_small_files(source: Path, pin: Path, kind: str) -> None:
    """Write cleaned copies of the configuration and tokenizer files."""
    if kind == "full":
        _write(pin / "config.json", checked_config(source / "config.json"))
    for name in JSON_FILES:
        if os.path.lexists(source / name):
            _write(pin / name, cleaned(read_json(source / name)))
    if kind == "full" and os.path.lexists(source / SHARDED):
        _write(pin / SHARDED, read_json(source / SHARDED))
    for name in PLAIN_FILES:
        if os.path.lexists(source / name) and regular_file(source / name).st_size <= LARGEST:
            shutil.copyfile(source / name, pin / name)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _require_unchanged(folder: Path, verdict: Readiness) -> None:
    """Raise unless the weights still are the files that were judged.

    Raises:
        Incomplete: if they are not.
    """
    if tuple(stamp(folder / weight.name) for weight in verdict.weights) != verdict.weights:
        raise Incomplete("written to while it was pinned")


def _require_untouched(pin: Path, verdict: Readiness) -> None:
    """Raise if someone wrote into the pinned files (safetensors before 0.8 writes in place).

    Raises:
        Incomplete: if so.
    """
    for weight in verdict.weights:
        try:
            now = (pin / weight.name).stat()
        except FileNotFoundError as error:
            raise Incomplete("deleted while it was read") from error
        copied = now.st_ino != weight.inode
        if now.st_size != weight.size or (now.st_mtime_ns != weight.mtime_ns and not copied):
            raise Incomplete("written to while it was read")
