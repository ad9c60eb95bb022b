"""Which model a checkpoint is: a digest of its weights and settings, and its architecture.

It is not loaded.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from .completeness import FileStamp, readiness
from .folders import models_inside
from .gguf_files import describe, gguf_file, gguf_identity
from .headers import Header, Incomplete, read_header, read_json
from .hub_names import require_hub_name
from .safeguards import MALFORMED, checked_config, cleaned

WHOLE = 64 << 20  # files up to here are hashed to the last byte
SAMPLE = 4096  # from larger ones this many bytes at both ends and the middle of every tensor

NAMES_AND_VERSIONS = frozenset(
    {
        "_name_or_path",
        "base_model_name_or_path",  # the base has an identity of its own
        "revision",
        "transformers_version",
        "peft_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "inference_mode",
    }
)
"""Entries of a configuration on which no number depends: our own settings take their place."""


def identity(folder: Path, weights: tuple[FileStamp, ...]) -> str:
    """Return a digest of what a checkpoint's numbers depend on: its weights and its settings.

    Args:
        folder: a checkpoint or a pin of it.
        weights: its weight files, as `readiness` listed them.

    Returns:
        A hexadecimal SHA-256 of the weights, and behind a hyphen 16 characters of that of the
        settings, such as `rope_parameters` or an adapter's `lora_alpha`: equal for a copy of the
        checkpoint, other times and inodes notwithstanding. `settings.same_identity` compares it
        with one that was recorded before the settings counted.
    """
    return f"{_weights_digest(folder, weights)}-{_json_digest(_settings(folder))}"


def named_identity(model: str | Path) -> str | None:
    """Return the identity of what a user named: a model, or an adapter.

    Args:
        model: a folder, a GGUF file, or a hub name.

    Returns:
        As `identity` gives it, or of a GGUF file its SHA-256; None for what is neither a folder nor
        a file here, that is, a hub name, which says by itself which model it is.

    Raises:
        UserError: if the folder holds no whole model: what it will hold is not known yet, and a
            digest of a part would be taken for that of another model.
    """
    if not str(model):
        return None
    if (file := gguf_identity(model)) is not None:
        return file
    folder = Path(model)
    if not folder.is_dir():
        return None
    verdict = readiness(folder)
    if not verdict.weights:
        inside = models_inside(folder)
        raise UserError(f"{folder} holds no whole model: {verdict.reason}{inside}")
    return identity(folder, verdict.weights)


def _settings(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint's configurations say, by file, without names and versions."""
    adapter = (folder / "adapter_config.json").exists()
    names = ("adapter_config.json" if adapter else "config.json", "generation_config.json")
    found: dict[str, Any] = {}
    for name in names:
        with suppress(Incomplete):  # absent; what is no JSON cannot be loaded either, which says so
            found[name] = _without_names(cleaned(read_json(folder / name)), sets=adapter)
    return found


def settings_digest(settings: Any) -> str:
    """Return 16 hexadecimal digits of what settings say, without names and versions.

    Args:
        settings: of a model, an adapter or a tokenizer, as JSON can hold them, or nearly: sets have
            no order, lists have one.
    """
    plain = json.loads(json.dumps(settings, default=_plain))
    return _json_digest(_without_names(cleaned(plain), sets=False))


def _json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def _without_names(value: Any, *, sets: bool) -> Any:
    """Return a JSON value without the entries of `NAMES_AND_VERSIONS`, and without empty ones.

    Args:
        value: what a file says.
        sets: whether lists of texts have no order: peft writes sets as they come.
    """
    if isinstance(value, list):
        unordered = sets and all(isinstance(item, str) for item in value)
        return sorted(value) if unordered else [_without_names(item, sets=sets) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if key not in NAMES_AND_VERSIONS}
    return {key: _without_names(item, sets=sets) for key, item in kept.items() if item is not None}


def _weights_digest(folder: Path, weights: tuple[FileStamp, ...]) -> str:
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
    from huggingface_hub.errors import StrictDataclassError

    try:
        if (file := gguf_file(name)) is not None:
            about = describe(file)
            sizes = (
                about.settings.get(f"{about.architecture}.{key}")
                for key in ("block_count", "embedding_length")
            )
            return _described(about.architecture, *sizes)
        config = _config(name)
    except (UserError, Incomplete, OSError, StrictDataclassError, *MALFORMED):
        return None
    text = config.get_text_config()
    layers, width = (getattr(text, key, None) for key in ("num_hidden_layers", "hidden_size"))
    return _described(config.model_type, layers, width)


def _config(name: str) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    if not Path(name).is_dir():
        require_hub_name(name)
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    values = checked_config(Path(name) / "config.json")
    return CONFIG_MAPPING[values["model_type"]].from_dict(values)


def _described(kind: str, layers: Any, width: Any) -> str:
    return f"{kind}, {layers} layers of {width}"
