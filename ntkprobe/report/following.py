"""Rewrites a page whenever files are added to its folders."""

import time
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path

from ..errors import UserError
from .page import NothingYet, make_report

_KINDS = (".parquet", ".safetensors", ".json")
Signature = frozenset[tuple[str, int, int]]


def follow(
    places: Iterable[str | PathLike[str]],
    output_file: Path,
    *,
    blur: bool = False,
    poll_interval: float = 10.0,
    idle_timeout: float | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Write a page, and again whenever something was added to its folders.

    Args:
        places: as of `make_report`.
        output_file: where to.
        blur: whether toxic texts are blurred.
        poll_interval: seconds between two looks.
        idle_timeout: end after so many seconds without news; None for never.
        log: called with a line for each page written, and for each error.

    Returns:
        The path. The last page, also of an interrupted call, no longer offers to load itself again.
    """
    folders = list(places)
    seen: Signature | None = None
    news = time.monotonic()
    every = max(5, round(poll_interval))
    try:
        while True:
            now = signature(folders)
            if now != seen:
                seen = now
                _write(folders, output_file, blur, every, log)
                news = time.monotonic()
            elif idle_timeout is not None and time.monotonic() - news >= idle_timeout:
                break
            time.sleep(poll_interval)
    finally:
        if output_file.is_file():
            make_report(folders, blur=blur).save(output_file)
    return output_file


def _write(
    folders: list, output_file: Path, blur: bool, every: int, log: Callable[[str], None]
) -> None:
    """Write the page; an error is raised for the first page and logged for later ones.

    Raises:
        UserError: if there is no page yet and none can be made, except that none is measured yet.
    """
    try:
        page = make_report(folders, blur=blur, reload_seconds=every)
        log(f"{page.save(output_file)} written")
    except UserError as error:
        if not output_file.is_file() and not isinstance(error, NothingYet):
            raise
        log(str(error))


def signature(places: Iterable[str | PathLike[str]]) -> Signature:
    """Return names, sizes and times of the complete files, which change when a folder grows.

    Args:
        places: as of `make_report`.

    Returns:
        An entry a file; files being written have hidden names and do not count.
    """
    found = set()
    for place in map(str, places):
        folder = Path(place) if Path(place).exists() else Path(place.partition("=")[2])
        for path in folder.rglob("[!.]*"):
            try:
                hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
                if path.suffix in _KINDS and not hidden:
                    status = path.stat()
                    found.add((str(path), status.st_size, status.st_mtime_ns))
            except OSError:  # moved or removed since listed
                continue
    return frozenset(found)
