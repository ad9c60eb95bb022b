"""What the folder of an attribution keeps: blocks of what was computed, and what they depend on.

FOLDER/step-00000100/pairs-00000000-00000256.safetensors    of the pairs from 0 to 255

A block is what was computed of some pairs at one checkpoint, whole or absent. The name says which
pairs: blocks of another size that a stopped call left are not taken for these. What the numbers
depend on is written once, and compared ever after (`settle`).
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..errors import UserError
from ..settings import require_same_settings
from ..storage import SCHEMA_VERSION, read_record, versions, write_json, write_tensors


class PairBlocks:
    """The blocks of one attribution, on disk or, without a folder, in memory.

    Args:
        folder: where they are.
        pairs: how many pairs there are.
        size: pairs in one block.
    """

    def __init__(self, folder: Path | None, pairs: int, size: int) -> None:
        self.folder, self.pairs, self.size = folder, pairs, size
        self._held: dict[tuple[int, int], dict[str, Tensor]] = {}

    @property
    def starts(self) -> range:
        """The first pair of every block."""
        return range(0, self.pairs, self.size)

    def rows(self, start: int) -> range:
        """Return the pairs of a block."""
        return range(start, min(start + self.size, self.pairs))

    def missing(self, step: int, shard: tuple[int, int] = (0, 1)) -> list[int]:
        """Return the blocks of a step that are not there, of those of worker i out of n."""
        index, workers = shard
        return [
            start
            for place, start in enumerate(self.starts)
            if place % workers == index and not self._has(step, start)
        ]

    def write(self, step: int, start: int, tensors: dict[str, Tensor], which: str) -> None:
        """Keep a block, whole or not at all.

        Args:
            step: of the checkpoint.
            start: the block's first pair.
            tensors: by name.
            which: the checkpoint's identity.
        """
        if self.folder is None:
            self._held[step, start] = tensors
        else:
            write_tensors(self._path(step, start), tensors, {"checkpoint": which})

    def read(self, step: int, start: int) -> dict[str, Tensor]:
        """Return a block.

        Raises:
            UserError: if it is not whole.
        """
        if self.folder is None:
            return self._held[step, start]
        path = self._path(step, start)
        try:
            return load(path.read_bytes())
        except SafetensorError as error:
            raise UserError(f"{path} is not whole: remove it and run the same command") from error

    def each(self, step: int) -> Iterator[dict[str, Tensor]]:
        """Yield the blocks of a step in the order of the pairs."""
        for start in self.starts:
            yield self.read(step, start)

    def forget(self, step: int) -> None:
        """Remove the blocks of a step."""
        self._held = {key: value for key, value in self._held.items() if key[0] != step}
        if self.folder is not None:
            shutil.rmtree(self._path(step, 0).parent, ignore_errors=True)

    def _has(self, step: int, start: int) -> bool:
        if self.folder is None:
            return (step, start) in self._held
        return self._path(step, start).is_file()

    def _path(self, step: int, start: int) -> Path:
        assert self.folder is not None
        end = self.rows(start).stop
        return self.folder / f"step-{step:08d}" / f"pairs-{start:08d}-{end:08d}.safetensors"


def settle(path: Path, record: dict[str, Any], *, what: str, instead: str) -> None:
    """Write what a folder's numbers depend on, or compare with what is written.

    Args:
        path: the JSON file.
        record: what they depend on now.
        what: the folder's contents, for the message.
        instead: what to do about another value.

    Raises:
        UserError: naming the first value that differs, as it was and as it is now.
    """  # ruff: ignore[docstring-extraneous-exception]
    if path.is_file():
        require_recorded(path, record, what=what, instead=instead)
    else:
        about = {"schema_version": SCHEMA_VERSION, **record, "ntkprobe": versions()["ntkprobe"]}
        write_json(path, about)


def require_attribution(folder: Path) -> None:
    """Raise if the record in a folder is another command's, such as a measurement's.

    Args:
        folder: it, which need not be there.

    Raises:
        UserError: if it is, or cannot be read.
    """
    instead = "give another --output-dir"
    record = read_record(folder / "run.json", instead)
    if record and not {"settings", "checkpoints"} <= set(record):
        raise UserError(f"{folder} is no attribution's folder: {instead}")


def require_recorded(path: Path, record: Mapping[str, Any], *, what: str, instead: str) -> None:
    """Compare what numbers depend on with what `settle` wrote; without a file there is no conflict.

    Args:
        path: the JSON file.
        record: what they depend on now, or some of it.
        what: the folder's contents, for the message.
        instead: what to do about another value.
    """
    if not path.is_file():
        return
    now = json.loads(json.dumps(record))
    then = read_record(path, instead)
    before = {key: then.get(key) for key in now}
    require_same_settings(f"{what} in {path.parent}", "made", before, now, instead=instead)
