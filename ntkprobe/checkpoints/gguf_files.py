"""GGUF files, as llama.cpp uses them: find, check, describe and identify them.

A GGUF holds a model's weights, mostly quantised, with its configuration, tokenizer and chat
template. What is loaded from it is the dequantised model, which is not the one it was made of.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, one_line

if TYPE_CHECKING:
    from gguf import GGUFReader

SUFFIX = ".gguf"
MAGIC = b"GGUF"
FULL_PRECISION = ("F32", "F64", "F16", "BF16")


@dataclass(frozen=True)
class GgufFile:
    """The metadata of a GGUF file.

    Attributes:
        path: where it is.
        architecture: llama.cpp's name of the model's family.
        types: how many tensors are stored in each type, such as `Q4_1`.
        shapes: of every tensor by its name, in torch's order (rows first).
        settings: its numbers and short texts, by key.
        template: its chat template; None where it has none.
        digest: SHA-256 of the file.
    """

    path: Path
    architecture: str
    types: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    settings: dict[str, Any]
    template: str | None
    digest: str

    @property
    def quantised(self) -> bool:
        """Whether any tensor has lost precision."""
        return any(name not in FULL_PRECISION for name in self.types)

    def about(self) -> str:
        """Return one line that says what is loaded from it."""
        parts = ", ".join(f"{number} {name}" for name, number in self.types.items())
        what = (
            "dequantised to float32: this is the dequantised model, not the original one"
            if self.quantised
            else "stored without quantisation"
        )
        return f"{self.path.name}: GGUF, {self.architecture}, {parts} tensors, {what}" + (
            "" if self.template else "; it has no chat template, so that prompts are raw"
        )


def gguf_file(place: str | Path) -> Path | None:
    """Return the GGUF file that is meant: the file itself, or the only one in a folder.

    Args:
        place: a name that may be a file, a folder, or no path at all.

    Returns:
        The file; None where it is no GGUF, or the folder holds a model of another form as well.

    Raises:
        UserError: if a folder holds several, or the file is one part of a model.
    """
    path = Path(place)
    if path.is_dir():
        others = ("config.json", "adapter_config.json", "model.safetensors")
        inside = sorted(path.glob(f"*{SUFFIX}"))
        if not inside or any((path / name).exists() for name in others):
            return None
        if len(inside) > 1:
            names = ", ".join(each.name for each in inside[:4])
            raise UserError(f"{path} holds several GGUF files ({names}): name one of them")
        path = inside[0]
    elif path.suffix.lower() != SUFFIX or not path.is_file():
        return None
    if "-of-" in path.stem and path.stem.rpartition("-of-")[2].isdigit():
        raise UserError(
            f"{path} is one part of a model: join the parts with llama-gguf-split --merge"
        )
    return path


def gguf_identity(place: str | Path) -> str | None:
    """Return the SHA-256 of the GGUF file that is meant; None where none is."""
    file = gguf_file(place)
    return None if file is None else digest(file)


def digest(file: Path) -> str:
    """Return the SHA-256 of a file, which is read once as long as it does not change."""
    info = file.stat()
    return _digest(file.resolve(), info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=16)
def _digest(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def describe(file: Path) -> GgufFile:
    """Return what a GGUF file says about itself, once its tensors are seen to be all there.

    Raises:
        UserError: if it is no GGUF, not whole, or lacks an architecture.
    """  # ruff: ignore[docstring-extraneous-exception]
    return _described(file, digest(file))


@lru_cache(maxsize=16)
def _described(file: Path, sha256: str) -> GgufFile:
    """Return the same; the reader takes seconds for a large vocabulary, and is not asked twice.

    Raises:
        UserError: if it names no architecture.
    """
    reader = open_reader(file)
    fields = reader.fields
    short = {
        key: field.contents()
        for key, field in fields.items()
        if not key.startswith("tokenizer.ggml.tok") and len(field.data) <= 1
    }
    architecture = short.get("general.architecture")
    if not isinstance(architecture, str):
        raise UserError(f"{file} names no architecture, so that nothing can be loaded from it")
    template = short.pop("tokenizer.chat_template", None)
    return GgufFile(
        path=file,
        architecture=architecture,
        types=dict(Counter(tensor.tensor_type.name for tensor in reader.tensors)),
        shapes={t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors},
        settings=short,
        template=template if isinstance(template, str) and template.strip() else None,
        digest=sha256,
    )


def open_reader(file: Path) -> "GGUFReader":
    """Return the gguf package's reader of a file that is whole.

    Raises:
        UserError: if the package is missing, or the file is of another kind or cut short.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(
            f"{file} is a GGUF file, which needs the package gguf: pip install 'ntkprobe[gguf]'"
        ) from error
    try:
        with file.open("rb") as opened:
            head = opened.read(4)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if head != MAGIC:
        raise UserError(f"{file} does not begin as a GGUF file does (SHA-256 {digest(file)})")
    try:
        reader = GGUFReader(file)
        size = file.stat().st_size
        ends = [int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors]
    except Exception as error:  # the reader parses untrusted bytes, and fails in many ways
        raise UserError(
            f"{file} is cut short or damaged ({one_line(error)[:120]}; {file.stat().st_size} bytes,"
            f" SHA-256 {digest(file)}): fetch it again"
        ) from error
    if not ends or max(ends) > size:
        raise UserError(
            f"{file} is cut short: {size} bytes of {max(ends, default=0)} (SHA-256 {digest(file)})"
        )
    return reader
