"""Readers for files of a checkpoint: bounded in size, and defined for any bytes.

Each reader returns the file's content, or raises `Incomplete` (the file may still be being written)
or `UserError` (it will never be right). Nothing here allocates more than the file's own size.
"""

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library itself
JSON_LIMIT = 256_000_000


class Incomplete(Exception):
    """The folder is not a complete checkpoint, but may become one."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself.

    Attributes:
        start: offset of the first byte of data.
        spans: name of each tensor → its first and last offset after `start`.
        size: the file's size in bytes, which the spans fill exactly.
    """

    start: int
    spans: Mapping[str, tuple[int, int]]
    size: int


def regular_file(path: Path) -> os.stat_result:
    """Return the stat of a regular file inside its folder; a link may not lead out of it.

    But a snapshot of the hub's own cache is made of links to the blobs of its repository.

    Raises:
        Incomplete: if there is no such file.
        UserError: if it is not a regular file, leads elsewhere, or may not be read by this account.
    """
    try:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            if not any(map(path.resolve().is_relative_to, _homes(path.parent.resolve()))):
                raise UserError(f"{path} is a link that leaves its folder: refused; copy the file")
            info = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Incomplete(f"no {path.name}") from error
    except (OSError, RuntimeError) as error:  # a loop of links, among others
        raise UserError(f"{path} cannot be read: {error}") from error
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"{path} is not a regular file: refused")
    try:
        os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError as error:
        raise Incomplete(f"no {path.name}") from error
    except PermissionError as error:
        raise UserError(
            f"{path} may not be read by this account (safetensors writes mode 0600):"
            " its owner must run chmod g+r on it"
        ) from error
    return info


def _homes(folder: Path) -> list[Path]:
    """Return where the files of a folder may lie: in it, or in the blobs of a hub repository.

    Args:
        folder: with its links resolved: `…/models--OWNER--NAME/snapshots/REVISION`, or any other.

    Returns:
        One or two folders; `blobs` counts as it stands, since it may be a link itself.
    """
    above = [folder, *folder.parents]
    snapshots = (place.parent for place in above if place.parent.name == "snapshots")
    repositories = [p.parent for p in snapshots if p.parent.name.startswith("models--")]
    return [folder, *(repository / "blobs" for repository in repositories[:1])]


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Return the JSON object in a regular file of at most `limit` bytes.

    Raises:
        Incomplete: if it is absent, cut short, or not (yet) a JSON object.
        UserError: if it is too large or not a regular file.
    """
    if regular_file(path).st_size > limit:
        raise UserError(f"{path} is larger than {limit} bytes: refused")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Incomplete(f"{path.name} is not whole JSON") from error
    except FileNotFoundError as error:
        raise Incomplete(f"no {path.name}") from error
    if not isinstance(value, dict):
        raise Incomplete(f"{path.name} is not a JSON object")
    return value


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file, after checking it against the file's size.

    Raises:
        Incomplete: if the file is absent, cut short, or its header makes no sense.
        UserError: if the header claims more than `HEADER_LIMIT` bytes, or the file is not regular.
    """
    size = regular_file(path).st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size >= 8 and length > HEADER_LIMIT:
                raise UserError(f"{path} is no safetensors file (a header of {length} bytes)")
            text = file.read(length) if size >= 8 + length else b""
    except FileNotFoundError as error:
        raise Incomplete(f"no {path.name}") from error
    try:
        entries = json.loads(text)
        spans = {name: _span(entry) for name, entry in entries.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Incomplete(f"{path.name} has no whole header") from error
    end = 8 + length + max((last for _, last in spans.values()), default=0)
    if end != size:
        raise Incomplete(f"{path.name} has {size} bytes of {end}")
    return Header(8 + length, spans, size)


def _span(entry: Any) -> tuple[int, int]:
    """Return the two offsets of one tensor.

    Raises:
        ValueError: unless 0 ≤ first ≤ last.
    """
    first, last = entry["data_offsets"]
    if type(first) is not int or type(last) is not int or not 0 <= first <= last:
        raise ValueError("offsets")
    return first, last


def read_some(path: Path, names: Iterable[str], largest: int) -> "dict[str, Tensor]":
    """Return a few tensors of a safetensors file, without reading the others.

    Args:
        path: of a file whose header was judged (`read_header`).
        names: of the tensors.
        largest: bytes; a larger tensor is left out.

    Returns:
        The tensors, by name.

    Raises:
        Incomplete: if the file is not whole any more.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    header = read_header(path)
    chosen = [n for n in names if header.spans[n][1] - header.spans[n][0] <= largest]
    with path.open("rb") as file:
        entries = json.loads(file.read(header.start)[8:])
        kept, data = {}, b""
        for name in chosen:
            first, last = header.spans[name]
            file.seek(header.start + first)
            kept[name] = {**entries[name], "data_offsets": [len(data), len(data) + last - first]}
            data += file.read(last - first)
    text = json.dumps(kept).encode()
    try:
        return load(len(text).to_bytes(8, "little") + text + data)
    except SafetensorError as error:
        raise Incomplete(f"{path.name} is not whole: {error}") from error


def read_index(path: Path) -> dict[str, set[str]]:
    """Return the names of the tensors that an index puts into each shard, shards in order.

    Raises:
        Incomplete: if the index is absent, cut short, or lists nothing.
        UserError: if a name is not that of a safetensors file in the same folder.
    """
    shards = read_json(path, HEADER_LIMIT).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise Incomplete(f"{path.name} lists no weights")
    found: dict[str, set[str]] = {}
    for tensor, name in shards.items():
        if not isinstance(name, str) or set(name) & set("/\\\0") or name.startswith("."):
            raise UserError(f"{path} names the shard {name!r}, outside its folder: refused")
        if not name.endswith(".safetensors"):
            raise UserError(f"{path} names the shard {name!r}: only safetensors are read")
        found.setdefault(name, set()).add(tensor)
    return dict(sorted(found.items()))
