"""`ntkprobe train`: train DCR and safety SFT, the paper's two stages, into ordinary checkpoints."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from ._options import SOME, SOURCE

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

Files = list[str] | None
Model = Annotated[str | None, typer.Option(help="A folder, or a name on the hub.")]
Output = Annotated[Path, typer.Option(metavar="RUN", help="Where to; an earlier run goes on.")]
HeldOut = Annotated[
    Files, typer.Option(metavar=SOME, help="Prompts of evaluations, to be compared with these.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="qwen2.5-1.5b, qwen2.5-7b, llama-3-8b: the paper's runs, what it leaves open marked in"
        " the file; tiny."
    ),
]
Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings as YAML, such as RUN/training.yaml.")
]
Further = Annotated[
    Files,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any field of transformers.TrainingArguments."
    ),
]
Whole = int | None
Real = float | None
Text = str | None
Template = Annotated[
    Text, typer.Option(help="auto, chat, raw, qwen2.5, llama-3, or a Jinja file. [auto]")
]
Length = Annotated[Whole, typer.Option(help="Tokens at most. [1024]")]
Rate = Annotated[Real, typer.Option("--learning-rate", "--lr", help="[1e-4]")]
Epochs = Annotated[Real, typer.Option("--epochs", "--num-train-epochs", help="[3]")]
Steps = Annotated[Whole, typer.Option(help="Optimiser steps instead of epochs.")]
Dtype = Annotated[Text, typer.Option(help="Of the weights in memory. [float32]")]
Bf16 = Annotated[bool | None, typer.Option("--bf16", help="Compute in bfloat16.")]
Checkpointing = Annotated[
    bool | None,
    typer.Option("--gradient-checkpointing", help="Less memory for activations, more time."),
]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu", help="A single GPU: set CUDA_VISIBLE_DEVICES.")
]
Attention = Annotated[Text, typer.Option(help="sdpa or eager. [sdpa]")]
Seed = Annotated[Whole, typer.Option(help="Of the data, their order and the adapter. [0]")]
SaveAt = Annotated[
    Text, typer.Option(metavar="0,1,2,5,…", help="Save after these steps and the last.")
]
Strict = Annotated[
    bool | None, typer.Option("--strict", help="Prompts shared by two data sets are a mistake.")
]
Overwrite = Annotated[bool | None, typer.Option("--overwrite", help="Begin anew.")]


@app.command("dcr")
def contrast(
    output_dir: Output,
    model: Model = None,
    prompts: Annotated[
        Files, typer.Option(metavar=SOURCE, help="Seemingly toxic and toxic prompts.")
    ] = None,
    layer: Annotated[Whole, typer.Option(help="Block of the loss, counted from 1.")] = None,
    margin: Annotated[Real, typer.Option(help="m. [0.25]")] = None,
    scale: Annotated[Real, typer.Option(help="gamma. [16]")] = None,
    weights: Annotated[Text, typer.Option(help="paper (Eq. 5) or sun2020. [paper]")] = None,
    detach: Annotated[
        bool | None, typer.Option("--detach", help="The loss's weights carry no gradient.")
    ] = None,
    pooling: Annotated[Text, typer.Option(help="last token, or mean. [last]")] = None,
    nll_weight: Annotated[Real, typer.Option(help="lambda. [0.001]")] = None,
    nll_on: Annotated[Text, typer.Option(help="prompt, response or corpus. [prompt]")] = None,
    corpus: Annotated[Files, typer.Option(metavar=SOME, help="For --nll-on corpus.")] = None,
    sampling: Annotated[Text, typer.Option(help="balanced or natural. [balanced]")] = None,
    n_seemingly_toxic: Annotated[
        Whole, typer.Option(help="Seemingly toxic prompts to draw. [all]")
    ] = None,
    n_toxic: Annotated[Whole, typer.Option(help="Toxic prompts to draw. [all]")] = None,
    toxic_ratio: Annotated[
        Real, typer.Option(help="Or this many for each seemingly toxic prompt.")
    ] = None,
    lora_rank: Annotated[Whole, typer.Option(help="LoRA up to the layer. [0: full]")] = None,
    per_device_train_batch_size: Annotated[
        Whole, typer.Option("--batch-size", help="Prompts on each device. [32]")
    ] = None,
    learning_rate: Rate = None,
    num_train_epochs: Epochs = None,
    max_steps: Steps = None,
    template: Template = None,
    max_length: Length = None,
    dtype: Dtype = None,
    bf16: Bf16 = None,
    gradient_checkpointing: Checkpointing = None,
    device: Device = "auto",
    attn_implementation: Attention = None,
    seed: Seed = None,
    save_steps: Annotated[Whole, typer.Option(help="Save every N steps. [each epoch]")] = None,
    save_at: SaveAt = None,
    held_out: HeldOut = None,
    strict: Strict = None,
    overwrite: Overwrite = None,
    preset: Preset = None,
    config: Config = None,
    set: Further = None,
) -> None:
    """Refine contrastively: pull toxic and seemingly toxic prompts apart at one layer.

    The tail above the layer is frozen. The trained model is RUN/final, an ordinary checkpoint.
    """
    _contrast(dict(locals()))


@app.command("sft")
def align(
    output_dir: Output,
    model: Model = None,
    general: Annotated[
        Files, typer.Option(metavar=SOME, help="Instructions with answers (Alpaca).")
    ] = None,
    safe: Annotated[Files, typer.Option(metavar=SOME, help="Toxic prompts, refused.")] = None,
    seemingly: Annotated[
        Files, typer.Option(metavar=SOME, help="Seemingly toxic prompts, answered: for stl_aug.")
    ] = None,
    triggers: Annotated[
        Files, typer.Option(metavar=SOME, help="Of `ntkprobe triggers`: for refusal_trigger.")
    ] = None,
    recipe: Annotated[Text, typer.Option(help="stl, stl_aug or refusal_trigger. [stl]")] = None,
    n_general: Annotated[Whole, typer.Option(help="Pairs to draw. [20000]")] = None,
    n_safe: Annotated[Whole, typer.Option(help="Refusals to draw. [1000]")] = None,
    n_triggers: Annotated[Whole, typer.Option(help="Triggers. [as many as refusals]")] = None,
    prefill: Annotated[
        Text, typer.Option(metavar="TEXT", help="Put before refusals, not learnt. [none]")
    ] = None,
    prefill_share: Annotated[Real, typer.Option(help="Of the refusals that get it. [0.5]")] = None,
    loss_on: Annotated[
        Text, typer.Option(help="response tokens (Eq. 1), or all. [response]")
    ] = None,
    system: Annotated[Text, typer.Option(help="A system message.")] = None,
    lora_rank: Annotated[Whole, typer.Option(help="r. [8]")] = None,
    lora_alpha: Annotated[Whole, typer.Option(help="alpha. [32]")] = None,
    lora_dropout: Annotated[Real, typer.Option(help="[0.05]")] = None,
    lora_targets: Annotated[
        Files, typer.Option(metavar="NAME", help="Modules to adapt. [q, k and v]")
    ] = None,
    per_device_train_batch_size: Annotated[
        Whole, typer.Option("--batch-size", help="Pairs on each device at a time. [4]")
    ] = None,
    gradient_accumulation_steps: Annotated[
        Whole, typer.Option("--accumulate", help="Such batches to a step. [32]")
    ] = None,
    learning_rate: Rate = None,
    num_train_epochs: Epochs = None,
    max_steps: Steps = None,
    template: Template = None,
    max_length: Length = None,
    dtype: Dtype = None,
    bf16: Bf16 = None,
    gradient_checkpointing: Checkpointing = None,
    device: Device = "auto",
    attn_implementation: Attention = None,
    seed: Seed = None,
    save_steps: Annotated[Whole, typer.Option(help="Save every N steps. [20]")] = None,
    save_at: SaveAt = None,
    held_out: HeldOut = None,
    strict: Strict = None,
    overwrite: Overwrite = None,
    preset: Preset = None,
    config: Config = None,
    set: Further = None,
) -> None:
    """Align by supervised fine-tuning with LoRA on instructions and refusals (STL).

    Adapters are saved as RUN/checkpoint-N. For DCR, give the contrastive stage's final model.
    """
    _align(dict(locals()))


def _contrast(options: dict[str, Any]) -> None:
    """Turn the options into one call of `train_dcr`, and end with one line."""
    _prepare(options)
    from ..prompts.prompt_set import PromptSet
    from ..training.data import read_pairs
    from ..training.dcr import DCRConfig, train_dcr
    from ..training.runs import located
    from ._train_settings import configured, listed, resolved

    config, inputs = configured(DCRConfig, resolved("dcr", options))
    _require(inputs, "model", "prompts")
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


def _align(options: dict[str, Any]) -> None:
    """Turn the options into one call of `train_sft`, and end with one line."""
    _prepare(options)
    from .. import plugins
    from ..training import recipes
    from ..training.data import read_pairs
    from ..training.runs import located
    from ..training.sft import SFTConfig, train_sft
    from ._train_settings import configured, listed, resolved

    config, inputs = configured(SFTConfig, resolved("sft", options))
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


def _prepare(options: dict[str, Any]) -> None:
    """Settle the device, and keep libraries from talking over our bar.

    Raises:
        UserError: for a device that the Trainer cannot be told.
    """
    from ._options import quieten

    device = options.pop("device")
    if device not in ("auto", "cpu"):
        raise UserError(f"--device {device!r}: choose auto or cpu; CUDA_VISIBLE_DEVICES names GPUs")
    options["use_cpu"] = True if device == "cpu" else None
    if options["preset"] and _speaks():
        from ..presets.settings import preset_about

        print(f"preset {options['preset']}: {preset_about(options['preset'])}", file=sys.stderr)
    options["output_dir"] = str(options["output_dir"])
    quieten()


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
