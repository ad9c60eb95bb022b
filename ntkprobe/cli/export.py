"""`ntkprobe export`: write a model as an ordinary folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from ..errors import one_line
from ..settings import Flag, LoadSettings
from ._options import command_of, quieten


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `ntkprobe export` is asked for.

    Attributes:
        model: a folder, an adapter, a GGUF file, or a hub name.
        output_dir: where to.
        adapter: merged into the model.
        load: how the model is loaded.
        overwrite: replace a model that is there.
    """

    model: Annotated[str, Flag(metavar="MODEL")]
    output_dir: Annotated[Path, Flag(metavar="FOLDER")]
    adapter: Annotated[Path | None, Flag(metavar="A")] = None
    load: Annotated[LoadSettings, Flag(only=("dtype",))] = field(
        default_factory=lambda: LoadSettings(device="cpu")
    )
    overwrite: bool = False


@command_of(ExportOptions)
def export(options: ExportOptions) -> None:
    """Write a model as an ordinary folder: safetensors, configuration, tokenizer and template.

    Quantised weights (GGUF, bitsandbytes, GPTQ, AWQ, fp8) are dequantised, an adapter is merged.
    Any program that reads Hugging Face models reads the folder.
    """
    quieten()
    from ..checkpoints.export import export_model

    made = export_model(
        options.model,
        options.output_dir,
        adapter=options.adapter,
        settings=options.load,
        overwrite=options.overwrite,
    )
    typer.echo(one_line(f"exported: {made}; next: ntkprobe evaluate --model {made}"))
