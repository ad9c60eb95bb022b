"""`ntkprobe doctor`: report what this machine and a run's file system can do."""

import os
import shutil
import sys
import tempfile
from importlib.util import cache_from_source
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError, one_line


def doctor(
    ckpt_dir: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run to measure.", show_default=False)
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Where to measure to.", show_default="RUN-ntk"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A GGUF file to look into.", show_default=False),
    ] = None,
) -> None:
    """Say what this machine can do: versions, devices, attention, and what RUN's disk allows.

    Nothing of yours is loaded, and nothing stays written.
    """
    machine = [*_software(), ("bytecode", _bytecode()), *_devices(), *_attention()]
    for name, value in [*machine, *_places(ckpt_dir, output_dir), *_gguf(model)]:
        typer.echo(f"{name:16} {one_line(value)}")


def _software() -> list[tuple[str, str]]:
    """Return the versions of what computes the numbers."""
    from ..storage import versions

    return list(versions().items())


def _bytecode() -> str:
    """Return whether imports are compiled at every start, which takes longer than most commands."""
    import torch

    if Path(cache_from_source(torch.__file__)).is_file():
        return "stored"
    if sys.dont_write_bytecode:
        return (
            "missing, and PYTHONDONTWRITEBYTECODE is set: every start compiles all imports again;"
            " unset it"
        )
    return "missing: is written as modules are imported, where the folder allows it"


def _devices() -> list[tuple[str, str]]:
    """Return what models would be loaded on, and how precisely they can be."""
    import torch

    from ..checkpoints import LoadSettings
    from ..openmp import WAITING

    found = [
        ("device", LoadSettings().placement()),
        ("threads", str(torch.get_num_threads())),
        ("threads wait", WAITING),
    ]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found.append((f"cuda:{index}", f"{about.name}, {about.total_memory / 1e9:.0f} GB"))
    return [*found, ("float64", "no" if LoadSettings().placement() == "mps" else "yes")]


def _attention() -> list[tuple[str, str]]:
    """Return what each implementation of attention can be differentiated by on this device."""
    from ..checkpoints import LoadSettings

    device = LoadSettings().placement()
    found = {name: _derivatives(name, device) for name in ("eager", "sdpa")}
    return [(f"attention {name}", message) for name, message in found.items()]


def _derivatives(attention: str, device: str) -> str:
    """Return which derivatives of a very small model exist, tried out."""
    import torch
    from torch.func import functional_call, jvp
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes: dict[str, Any] = dict.fromkeys(
        ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), 4
    )
    others: dict[str, Any] = {"num_key_value_heads": 1, "attn_implementation": attention}
    config = Qwen2Config(**sizes, num_attention_heads=1, **others)
    with torch.random.fork_rng():
        model = Qwen2ForCausalLM(config).eval().to(device)
    theta = {name: p.detach() for name, p in model.named_parameters()}
    ids = {"input_ids": torch.tensor([[0, 1, 2]], device=device), "use_cache": False}

    def logits(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(model, parameters, (), ids).logits

    model(**ids).logits.sum().backward()
    try:
        jvp(logits, (theta,), (theta,))
    except (RuntimeError, NotImplementedError):
        return "backward; not forward mode, for which that estimator takes eager instead"
    return "backward and forward mode"


def _places(run: Path | None, out: Path | None) -> list[tuple[str, str]]:
    """Return what the file systems of a run and of its measurements allow.

    Raises:
        UserError: if there is no such run.
    """
    if run is None:
        return []
    if not run.is_dir():
        raise UserError(f"no folder {run}: --ckpt-dir takes a training run or one checkpoint")
    from ..places import measurements_beside
    from ..watcher import plan

    place = out if out is not None else measurements_beside(run)
    beside = _existing(place)
    free = shutil.disk_usage(beside).free
    return [
        *(("checkpoint", line) for line in plan(place, ckpt_dir=run)),
        ("writable", "yes" if os.access(beside, os.W_OK) else f"no: {beside}"),
        ("pins", _pins(run, beside)),
        ("free space", f"{free / 1e9:.1f} GB in {beside}"),
    ]


def _gguf(place: Path | None) -> list[tuple[str, str]]:
    """Return what is in a GGUF file, and what loading it takes.

    Raises:
        UserError: if it is none.
    """
    if place is None:
        return []
    from math import prod

    from ..checkpoints.gguf_files import describe, gguf_file

    file = gguf_file(place)
    if file is None:
        raise UserError(f"{place} is no GGUF file: doctor's --model takes one, or its folder")
    about = describe(file)
    numbers = sum(map(prod, about.shapes.values()))
    split = about.settings.get("tokenizer.ggml.pre", "of no name")
    return [
        ("gguf", about.about()),
        ("gguf digest", about.digest),
        ("gguf tokenizer", f"{about.settings.get('tokenizer.ggml.model')}, split {split}"),
        ("gguf weights", f"{numbers:,} numbers, {4 * numbers / 1e9:.2f} GB in float32"),
    ]


def _existing(place: Path) -> Path:
    """Return the nearest folder that is there already."""
    return next(p for p in [place.resolve(), *place.resolve().parents] if p.is_dir())


def _pins(run: Path, beside: Path) -> str:
    """Return how a checkpoint can be kept from rotation while it is read."""
    from ..checkpoints.completeness import pickled_weights

    weights = next(run.rglob("*.safetensors"), None)
    if weights is None:
        if any(path.is_file() and pickled_weights([path.name]) for path in run.rglob("*")):
            return "unknown: the run's weights are of a kind that is not read, see its checkpoints"
        return "unknown: the run holds no weights yet"
    try:
        with tempfile.TemporaryDirectory(prefix=".ntkprobe-", dir=beside) as place:
            os.link(weights.resolve(), Path(place) / "pin")
    except OSError as error:
        return f"copies, since hard links fail ({error.strerror}): use an OUT on RUN's file system"
    return "hard links, which take no space"
