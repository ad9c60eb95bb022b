"""`ntkprobe train`: train DCR and safety SFT, the paper's two stages."""

import os
import sys
from pathlib import Path
from typing import Any

import typer

from ..errors import UserError
from ._options import command_of
from ._train_options import DCROptions, SFTOptions, StageOptions

app = typer.Typer(add_completion=False, rich_markup_mode="rich", no_args_is_help=True)


@app.command("dcr")
@command_of(DCROptions)
def contrast(options: DCROptions) -> None:
    """Refine contrastively: pull toxic and seemingly toxic prompts apart at one layer.

    The tail above the layer is frozen. The trained model is RUN/final, an ordinary checkpoint.
    """
    typed = _prepared(options, "dcr")
    from ..prompts.prompt_set import PromptSet
    from ..training.data import read_pairs
    from ..training.dcr import DCRConfig, train_dcr
    from ..training.runs import located
    from ._train_settings import configured, listed, resolved

    config, inputs = configured(DCRConfig, resolved("dcr", typed))
    _require({**inputs, "layer": config.layer}, "model", "prompts", "layer")
    files = {name: listed(inputs.get(name)) for name in ("prompts", "corpus", "held_out")}
    done = _finished(config)
    final = train_dcr(
        inputs["model"],
        PromptSet.from_files([located(file) for file in files["prompts"]]),
        config,
        corpus=[pair for file in files["corpus"] for pair in read_pairs(located(file))],
        held_out=_texts(files["held_out"]),
        sources={name: paths for name, paths in files.items() if paths},
    )
    _close(done, final, f"ntkprobe train sft --model {final} --general FILE --safe FILE")


@app.command("sft")
@command_of(SFTOptions)
def align(options: SFTOptions) -> None:
    """Align by supervised fine-tuning with LoRA on instructions and refusals (STL).

    Adapters are saved as RUN/checkpoint-N. For DCR, give the contrastive stage's final model.
    """
    typed = _prepared(options, "sft")
    from .. import plugins
    from ..training import recipes
    from ..training.data import read_pairs
    from ..training.runs import located
    from ..training.sft import SFTConfig, train_sft
    from ._train_settings import configured, listed, resolved

    config, inputs = configured(SFTConfig, resolved("sft", typed))
    _require(inputs, "model", *plugins.load(recipes, config.recipe).needs)
    sources = ("general", "safe", "seemingly", "triggers")
    files = {name: listed(inputs.get(name)) for name in sources}
    pairs = {
        name: [p for f in paths for p in read_pairs(located(f))] for name, paths in files.items()
    }
    files["held_out"] = listed(inputs.get("held_out"))
    done = _finished(config)
    final = train_sft(
        inputs["model"],
        pairs["general"],
        pairs["safe"],
        config,
        seemingly=pairs["seemingly"],
        triggers=pairs["triggers"],
        held_out=_texts(files["held_out"]),
        sources={name: paths for name, paths in files.items() if paths},
    )
    _close(done, final, f"ntkprobe measure --ckpt-dir {final.parent} --prompts FILE")


def _prepared(options: StageOptions, stage: str) -> dict[str, Any]:
    """Return what was typed, by setting, the device settled; libraries are kept quiet.

    Raises:
        UserError: for a device that the Trainer cannot choose.
    """
    from ._options import quieten

    if options.device not in ("auto", "cpu"):
        raise UserError(
            f"--device {options.device!r}: choose auto or cpu; CUDA_VISIBLE_DEVICES names GPUs"
        )
    if options.preset and _speaks():
        from ..presets.settings import preset_about

        about = preset_about(options.preset, stage)
        print(f"preset {options.preset}: {about}", file=sys.stderr)
    quieten()
    return options.typed()


def _speaks() -> bool:
    """Return whether this process is the one that talks: the first under torchrun, or the only."""
    return os.environ.get("RANK", "0") == "0"


def _require(inputs: dict[str, Any], *names: str) -> None:
    """Insist on what a stage is applied to.

    Raises:
        UserError: for the first that is missing.
    """
    if missing := [name for name in names if not inputs.get(name)]:
        raise UserError(f"no {missing[0]}: give --{missing[0]}, or a preset or file that names it")


def _texts(files: list[str]) -> dict[str, list[str]]:
    """Return the prompts of files, whatever their groups, by file name where that tells them."""
    from ..training.data import read_texts
    from ..training.runs import located

    short = [Path(file).name for file in files]
    names = short if len(set(short)) == len(files) else files
    return {name: read_texts(located(f)) for name, f in zip(names, files, strict=True)}


def _finished(config: Any) -> bool:
    """Return whether the run was finished before this call."""
    return not config.overwrite and (Path(config.output_dir) / "final").is_dir()


def _close(done: bool, final: Path, following: str) -> None:
    """Show what the stages took, and end with what can be done next."""
    import json

    if not _speaks():
        return
    report = json.loads((final.parent / "training.json").read_text("utf-8"))
    for row in report.get("stages", []):
        memory = f"  {row['peak_gib']:8.2f} GiB at most" if "peak_gib" in row else ""
        print(f"  {row['stage']:<8} {row['seconds']:9.1f} s{memory}", file=sys.stderr)
    typer.echo(f"{'already ' if done else ''}trained: {final}; next: {following}")
