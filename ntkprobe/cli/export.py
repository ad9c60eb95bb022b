"""`ntkprobe export`: write a model as an ordinary folder."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import one_line

Flag = typer.Option


def export(
    model: Annotated[
        str, Flag(metavar="MODEL", help="A folder, an adapter, a GGUF file, or a hub name.")
    ],
    output_dir: Annotated[Path, Flag(metavar="FOLDER", help="Where to.")],
    adapter: Annotated[
        Path | None, Flag(metavar="A", help="Merged into the model.", show_default=False)
    ] = None,
    dtype: Annotated[str, Flag(help="float32, float64, bfloat16 or float16.")] = "float32",
    overwrite: Annotated[bool, Flag("--overwrite", help="Replace a model that is there.")] = False,
) -> None:
    """Write a model as an ordinary folder: safetensors, configuration, tokenizer and template.

    Quantised weights (GGUF, bitsandbytes, GPTQ, AWQ, fp8) are dequantised, an adapter is merged.
    Any program that reads Hugging Face models reads the folder.
    """
    from ._options import quieten

    quieten()
    from ..checkpoints import LoadSettings
    from ..checkpoints.export import export_model

    settings = LoadSettings(dtype=dtype, device="cpu")
    made = export_model(model, output_dir, adapter=adapter, settings=settings, overwrite=overwrite)
    typer.echo(one_line(f"exported: {made}; next: ntkprobe evaluate --model {made}"))
