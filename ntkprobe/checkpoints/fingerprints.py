"""A digest of a checkpoint's weights, which changes when the checkpoint is rewritten."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from .completeness import FileStamp
from .headers import Header, read_header

WHOLE = 64 << 20  # files up to here are hashed to the last byte
SAMPLE = 4096  # from larger ones this many bytes at both ends and the middle of every tensor


def identity(folder: Path, weights: tuple[FileStamp, ...]) -> str:
    """Return a hexadecimal SHA-256 of the weights in `folder`.

    Args:
        folder: a checkpoint or a pin of it.
        weights: its weight files, as `readiness` listed them.

    Returns:
        64 characters: equal for a copy of the checkpoint, other times and inodes notwithstanding.
    """
    digest = hashlib.sha256()
    for name, size in sorted((weight.name, weight.size) for weight in weights):
        digest.update(f"{name}\0{size}\0".encode())
        # Resolved: a pin, whose files were judged, may be made of links.
        for piece in _pieces((folder / name).resolve(), size):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    """Yield the bytes of one weight file that count."""
    with path.open("rb") as file:
        if size <= WHOLE:
            while block := file.read(1 << 20):
                yield block
            return
        header = read_header(path)
        yield file.read(header.start)
        for offset in _offsets(header):
            file.seek(header.start + offset)
            yield file.read(SAMPLE)


def _offsets(header: Header) -> Iterator[int]:
    """Yield where to sample: begin, middle and end of every tensor, in the order of the file."""
    for first, last in sorted(header.spans.values()):
        end = max(first, last - SAMPLE)
        yield from sorted({first, (first + end) // 2, end})
