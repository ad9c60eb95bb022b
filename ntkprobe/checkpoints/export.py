"""A model as an ordinary folder: dequantised, or with its adapter merged."""

import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import UserError, one_line
from .adapters import adapted, base_and_adapter
from .loading import LoadSettings, load_model, load_tokenizer
from .quantised import Quantisation, write_dequantised

TEMPLATES = "additional_chat_templates"
"""The one folder that a tokenizer is saved with."""


def export_model(
    model: str,
    output_dir: Path,
    *,
    adapter: Path | None = None,
    settings: LoadSettings | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as a folder of safetensors, configuration, tokenizer and template.

    Args:
        model: a folder, an adapter, a GGUF file or a hub name.
        output_dir: the folder, which appears whole or not at all.
        adapter: merged into the model.
        settings: how to load it; the folder keeps its `dtype`.
        overwrite: replace a model that the folder holds.

    Returns:
        The folder.

    Raises:
        UserError: if the folder holds something.
    """  # ruff: ignore[docstring-extraneous-exception]
    named, above = base_and_adapter(model, adapter)
    _require_free(output_dir, overwrite)
    _require_apart(output_dir, [Path(named), *([above] if above else [])])
    base = _loaded(named, settings or LoadSettings(device="cpu"))
    own = above is not None and (above / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(above if own and above is not None else named, local=own)
    place = output_dir.resolve()
    hidden = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        with nullcontext(base) if above is None else adapted(base, above) as whole:
            _write(whole, tokenizer, hidden)
        if place.exists():
            shutil.rmtree(place)
        os.replace(hidden, place)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return output_dir


def _require_free(output_dir: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, or with `overwrite` more than a model.

    Raises:
        UserError: saying what it holds, or that it cannot be written to.
    """
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        held = sorted(output_dir.iterdir()) if output_dir.exists() else []
    except OSError as error:
        raise UserError(f"cannot write to {output_dir}: {error.strerror}") from error
    if Path.cwd().is_relative_to(output_dir.resolve()):
        raise UserError(f"{output_dir} is the folder that you are in: name one below it")
    if not held:
        return
    if not (overwrite and (output_dir / "config.json").is_file()):
        raise UserError(f"{output_dir} holds something: choose another --output-dir")
    if further := [p.name for p in held if p.is_dir() and p.name != TEMPLATES]:
        raise UserError(
            f"{output_dir} holds more than a model ({further[0]}), which --overwrite would remove: "
            "choose another --output-dir"
        )


def _require_apart(output_dir: Path, sources: list[Path]) -> None:
    """Refuse to write into a folder that is read.

    Raises:
        UserError: naming it.
    """
    for source in sources:
        if source.is_dir() and output_dir.resolve().is_relative_to(source.resolve()):
            raise UserError(f"{source} is only read: choose an --output-dir outside of it")
        if source.is_file() and source.resolve().is_relative_to(output_dir.resolve()):
            raise UserError(f"{source} is only read, and in {output_dir}: choose another")


def _loaded(name: str, settings: LoadSettings) -> Any:
    """Return a model by its name; of a quantised folder the dequantised one."""
    how = Quantisation.of(Path(name)) if Path(name).is_dir() else None
    if how is None:
        return load_model(name, settings)
    with TemporaryDirectory() as place:
        plain = write_dequantised(Path(name), how, Path(place))
        said = f"{name}: {how.method}, dequantised: this is not the original model"
        print(one_line(said), file=sys.stderr)
        return load_model(str(plain), settings)


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
