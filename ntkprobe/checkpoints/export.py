"""A model as an ordinary folder: dequantised, or with its adapter merged."""

import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import UserError, one_line
from .adapters import adapted, base_and_adapter
from .loading import LoadSettings, load_model, load_tokenizer
from .quantised import Quantisation, write_dequantised


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
    """
    held = output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir()))
    if held and not (overwrite and (output_dir / "config.json").is_file()):
        raise UserError(f"{output_dir} holds something: choose another --output-dir")
    named, above = base_and_adapter(model, adapter)
    base = _loaded(named, settings or LoadSettings(device="cpu"))
    own = above is not None and (above / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(above if own and above is not None else named, local=own)
    hidden = output_dir.with_name(f".{output_dir.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    if above is None:
        _write(base, tokenizer, hidden)
    else:
        with adapted(base, above) as merged:
            _write(merged, tokenizer, hidden)
    if output_dir.exists():
        shutil.rmtree(output_dir)
    os.replace(hidden, output_dir)
    return output_dir


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
