"""Readers for the files of a checkpoint that we parse ourselves: bounded, and total on any bytes.

Each reader returns what the file says, or raises `Incomplete` (the file may still be being written)
or `UserError` (it will never be right). Nothing here allocates more than the file's own size.
"""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library itself
JSON_LIMIT = 256_000_000


class Incomplete(Exception):
    """The folder is not a whole checkpoint now, but may become one."""


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

    Raises:
        Incomplete: if there is no such file.
        UserError: if it is not a regular file, leads elsewhere, or may not be read by this account.
    """
    try:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            if not path.resolve().is_relative_to(path.parent.resolve()):
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


def read_index(path: Path) -> list[str]:
    """Return the sorted names of the shards that an index lists.

    Raises:
        Incomplete: if the index is absent, cut short, or lists nothing.
        UserError: if a name is not that of a safetensors file in the same folder.
    """
    shards = read_json(path, HEADER_LIMIT).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise Incomplete(f"{path.name} lists no weights")
    names = set()
    for name in shards.values():
        if not isinstance(name, str) or set(name) & set("/\\\0") or name.startswith("."):
            raise UserError(f"{path} names the shard {name!r}, outside its folder: refused")
        if not name.endswith(".safetensors"):
            raise UserError(f"{path} names the shard {name!r}: only safetensors are read")
        names.add(name)
    return sorted(names)
