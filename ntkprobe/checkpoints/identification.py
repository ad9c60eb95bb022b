"""Which model a checkpoint is: a digest of its weights, and its architecture; it is not loaded."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from .completeness import FileStamp
from .gguf_files import describe, gguf_file
from .headers import Header, Incomplete, read_header
from .safeguards import checked_config

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


def architecture_named(name: str) -> str | None:
    """Return the kind and size of a model, such as `llama, 30 layers of 576`.

    Args:
        name: a folder, a GGUF file or a hub name; the last is asked for at the hub.

    Returns:
        The same for two models of which one was trained from the other; None if it cannot be read.
    """
    try:
        if (file := gguf_file(name)) is not None:
            about = describe(file)
            sizes = (
                about.settings.get(f"{about.architecture}.{key}")
                for key in ("block_count", "embedding_length")
            )
            return _described(about.architecture, *sizes)
        config = _config(name)
    except (UserError, Incomplete, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    text = config.get_text_config()
    layers, width = (getattr(text, key, None) for key in ("num_hidden_layers", "hidden_size"))
    return _described(config.model_type, layers, width)


def _config(name: str) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    from .loading import require_hub_name

    if not Path(name).is_dir():
        require_hub_name(name)
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    values = checked_config(Path(name) / "config.json")
    return CONFIG_MAPPING[values["model_type"]].from_dict(values)


def _described(kind: str, layers: Any, width: Any) -> str:
    return f"{kind}, {layers} layers of {width}"
