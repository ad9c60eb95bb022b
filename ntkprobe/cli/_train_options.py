"""The options of `ntkprobe train`, and the configuration they make with a preset and a file."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml

from ..errors import UserError
from ..presets.settings import preset_files, preset_settings
from ..settings import Flag, parse_yaml
from ..training.config import StageConfig
from ._options import SOME, SOURCE

DATA, OPTIMISER, ADAPTER, LOSS = "Data", "Optimiser", "Adapter", "Loss"
LOADING, SAVING, SEQUENCES = "Precision and memory", "Saving", "Sequences"

Files = list[str] | None
Whole = int | None
Real = float | None
Text = str | None


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What both stages have in common.

    Attributes:
        output_dir: where to; an earlier run goes on.
        model: a folder, or a name on the hub.
        preset: `qwen2.5-1.5b`, `qwen2.5-7b`, `llama-3-8b`: the paper's runs, what it leaves open
            marked in the file; `tiny`.
        config: settings as YAML, such as `RUN/training.yaml`.
        set: any field of `transformers.TrainingArguments`.
        overwrite: begin anew.
        held_out: prompts of evaluations, to be compared with these.
        strict: prompts shared by two data sets are a mistake.
        learning_rate: [1e-4]
        num_train_epochs: [3]
        max_steps: optimiser steps instead of epochs.
        seed: of the data, their order and the adapter. [0]
        template: `auto`, `chat`, `raw`, `qwen2.5`, `llama-3`, or a Jinja file. [auto]
        max_length: tokens at most. [1024]
        dtype: of the weights in memory. [float32]
        bf16: compute in bfloat16.
        gradient_checkpointing: less memory for activations, more time.
        device: a single GPU: set CUDA_VISIBLE_DEVICES.
        attn_implementation: `sdpa` or `eager`. [sdpa]
        save_at: save after these steps and the last.
    """

    output_dir: Annotated[Path, Flag(metavar="RUN")]
    model: Text = None
    preset: Text = None
    config: Annotated[Path | None, Flag(metavar="FILE")] = None
    set: Annotated[Files, Flag(metavar="NAME=VALUE")] = None
    overwrite: bool | None = None
    held_out: Annotated[Files, Flag(panel=DATA, metavar=SOME)] = None
    strict: Annotated[bool | None, Flag(panel=DATA)] = None
    learning_rate: Annotated[Real, Flag(panel=OPTIMISER, decls=("--learning-rate", "--lr"))] = None
    num_train_epochs: Annotated[
        Real, Flag(panel=OPTIMISER, decls=("--epochs", "--num-train-epochs"))
    ] = None
    max_steps: Annotated[Whole, Flag(panel=OPTIMISER)] = None
    seed: Annotated[Whole, Flag(panel=OPTIMISER)] = None
    template: Annotated[Text, Flag(panel=SEQUENCES)] = None
    max_length: Annotated[Whole, Flag(panel=SEQUENCES)] = None
    dtype: Annotated[Text, Flag(panel=LOADING)] = None
    bf16: Annotated[bool | None, Flag(panel=LOADING)] = None
    gradient_checkpointing: Annotated[bool | None, Flag(panel=LOADING)] = None
    device: Annotated[str, Flag(panel=LOADING, metavar="auto|cpu")] = "auto"
    attn_implementation: Annotated[Text, Flag(panel=LOADING)] = None
    save_at: Annotated[Text, Flag(panel=SAVING, metavar="0,1,2,5,…")] = None

    def typed(self) -> dict[str, Any]:
        """Return the settings that were typed, by the name of the configuration's field.

        Returns:
            Those options that are not None, and `preset`, `config` and `set` among them.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        device = values.pop("device")
        values |= {"use_cpu": True if device == "cpu" else None, "output_dir": str(self.output_dir)}
        return {name: value for name, value in values.items() if value not in (None, [])}


@dataclass(frozen=True, kw_only=True)
class DCROptions(StageOptions):
    """What `ntkprobe train dcr` is asked for.

    Attributes:
        prompts: seemingly toxic and toxic prompts.
        layer: block of the loss, counted from 1.
        margin: m. [0.25]
        scale: gamma. [16]
        weights: `paper` (Eq. 5) or `sun2020`. [paper]
        detach: the loss's weights carry no gradient.
        pooling: `last` token, or `mean`. [last]
        nll_weight: lambda. [0.001]
        nll_on: `prompt`, `response` or `corpus`. [prompt]
        corpus: for `--nll-on corpus`.
        sampling: `balanced` or `natural`. [balanced]
        n_seemingly_toxic: seemingly toxic prompts to draw. [all]
        n_toxic: toxic prompts to draw. [all]
        toxic_ratio: or this many for each seemingly toxic prompt.
        lora_rank: LoRA up to the layer. [0: full]
        per_device_train_batch_size: prompts on each device. [32]
        save_steps: save every N steps. [each epoch]
    """

    prompts: Annotated[Files, Flag(metavar=SOURCE)] = None
    layer: Whole = None
    margin: Annotated[Real, Flag(panel=LOSS)] = None
    scale: Annotated[Real, Flag(panel=LOSS)] = None
    weights: Annotated[Text, Flag(panel=LOSS)] = None
    detach: Annotated[bool | None, Flag(panel=LOSS)] = None
    pooling: Annotated[Text, Flag(panel=LOSS)] = None
    nll_weight: Annotated[Real, Flag(panel=LOSS)] = None
    nll_on: Annotated[Text, Flag(panel=LOSS)] = None
    corpus: Annotated[Files, Flag(panel=DATA, metavar=SOME)] = None
    sampling: Annotated[Text, Flag(panel=DATA)] = None
    n_seemingly_toxic: Annotated[Whole, Flag(panel=DATA)] = None
    n_toxic: Annotated[Whole, Flag(panel=DATA)] = None
    toxic_ratio: Annotated[Real, Flag(panel=DATA)] = None
    lora_rank: Annotated[Whole, Flag(panel=ADAPTER)] = None
    per_device_train_batch_size: Annotated[
        Whole, Flag(panel=OPTIMISER, decls=("--batch-size",))
    ] = None
    save_steps: Annotated[Whole, Flag(panel=SAVING)] = None


@dataclass(frozen=True, kw_only=True)
class SFTOptions(StageOptions):
    """What `ntkprobe train sft` is asked for.

    Attributes:
        general: instructions with answers (Alpaca).
        safe: toxic prompts, refused.
        seemingly: seemingly toxic prompts, answered: for `stl_aug`, `influence`.
        triggers: of `ntkprobe triggers`: for `refusal_trigger`.
        recipe: `stl`, `stl_aug`, `influence` or `refusal_trigger`. [stl]
        n_general: pairs to draw. [20000]
        n_safe: refusals to draw. [1000]
        n_triggers: triggers. [as many as refusals]
        n_seemingly: for `influence`: its first pairs. [a tenth]
        prefill: put before refusals, not learnt. [none]
        prefill_share: of the refusals that get it. [0.5]
        loss_on: `response` tokens (Eq. 1), or `all`. [response]
        system: a system message.
        lora_rank: r. [8]
        lora_alpha: alpha. [32]
        lora_dropout: [0.05]
        lora_targets: modules to adapt. [q, k and v]
        per_device_train_batch_size: pairs on each device at a time. [4]
        gradient_accumulation_steps: such batches to a step. [32]
        save_steps: save every N steps. [20]
    """

    general: Annotated[Files, Flag(metavar=SOME)] = None
    safe: Annotated[Files, Flag(metavar=SOME)] = None
    seemingly: Annotated[Files, Flag(panel=DATA, metavar=SOME)] = None
    triggers: Annotated[Files, Flag(panel=DATA, metavar=SOME)] = None
    recipe: Text = None
    n_general: Annotated[Whole, Flag(panel=DATA)] = None
    n_safe: Annotated[Whole, Flag(panel=DATA)] = None
    n_triggers: Annotated[Whole, Flag(panel=DATA)] = None
    n_seemingly: Annotated[Whole, Flag(panel=DATA)] = None
    prefill: Annotated[Text, Flag(panel=DATA, metavar="TEXT")] = None
    prefill_share: Annotated[Real, Flag(panel=DATA)] = None
    loss_on: Annotated[Text, Flag(panel=LOSS)] = None
    system: Annotated[Text, Flag(panel=SEQUENCES)] = None
    lora_rank: Annotated[Whole, Flag(panel=ADAPTER)] = None
    lora_alpha: Annotated[Whole, Flag(panel=ADAPTER)] = None
    lora_dropout: Annotated[Real, Flag(panel=ADAPTER)] = None
    lora_targets: Annotated[Files, Flag(panel=ADAPTER, metavar="NAME")] = None
    per_device_train_batch_size: Annotated[
        Whole, Flag(panel=OPTIMISER, decls=("--batch-size",))
    ] = None
    gradient_accumulation_steps: Annotated[
        Whole, Flag(panel=OPTIMISER, decls=("--accumulate",))
    ] = None
    save_steps: Annotated[Whole, Flag(panel=SAVING)] = None


Stage = TypeVar("Stage", bound=StageConfig)

INPUTS = ("model", "prompts", "corpus", "general", "safe", "seemingly", "triggers", "held_out")
"""What settings are applied to; every other name is a field of the configuration."""

RECORDED = ("stage", "digests", "processes")
"""What a recorded run says besides its settings."""


def resolved(stage: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a stage by name.

    Args:
        stage: `dcr` or `sft`.
        options: what was typed, None where nothing was; with `preset`, `config` and `set`.

    Returns:
        The preset's settings, overridden by the file's, overridden by the typed ones.
    """
    typed = {name: value for name, value in options.items() if value not in (None, [])}
    preset, file = typed.pop("preset", None), typed.pop("config", None)
    further = [assignment(text) for text in typed.pop("set", [])]
    shipped = preset_files(preset, stage) | preset_settings(preset, stage) if preset else {}
    layers = [shipped, _read(file, stage) if file else {}]
    merged: dict[str, Any] = {}
    for layer in (*layers, typed, dict(further)):
        merged |= _one_number_of_toxic(_chosen_saves(layer))
    return merged


def configured(kind: type[Stage], settings: dict[str, Any]) -> tuple[Stage, dict[str, Any]]:
    """Return the configuration, and the inputs that it is applied to.

    Args:
        kind: of the stage.
        settings: of `resolved`.

    Returns:
        The configuration and the inputs by name.

    Raises:
        UserError: for an unknown setting or a value that does not fit.
    """
    inputs = {name: value for name, value in settings.items() if name in INPUTS}
    values = {name: value for name, value in settings.items() if name not in INPUTS}
    if "lora_targets" in values:
        values["lora_targets"] = listed(values["lora_targets"]) or None
    known = {f.name: f.default for f in fields(kind) if f.init}
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(name, [*known, *INPUTS], 1)
            raise UserError(
                f"no setting {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
            )
        if isinstance(known[name], int | float) and not isinstance(value, int | float):
            raise UserError(f"{name} is {value!r}: give {type(known[name]).__name__}")
    try:
        return kind(**values), inputs
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(str(error)) from error


def listed(value: str | Sequence[str] | None) -> list[str]:
    """Return one file or several as a list."""
    return [value] if isinstance(value, str) else list(value or [])


def _read(path: Path, stage: str) -> dict[str, Any]:
    """Return the settings in a YAML file, which may be the record of a run.

    Raises:
        UserError: if it is no mapping, or of another stage.
    """
    try:
        values = parse_yaml(path.read_text("utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path} holds no settings: write lines such as `layer: 13`")
    if values.get("stage", stage) != stage:
        raise UserError(f"--config {path} is of the stage {values['stage']}, not {stage}")
    plain = {str(name).replace("-", "_"): value for name, value in values.items()}
    return {name: value for name, value in plain.items() if name not in RECORDED}


def assignment(text: str) -> tuple[str, Any]:
    """Return the name and value of `--set NAME=VALUE`, the value read as YAML.

    Raises:
        UserError: if there is no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text!r}: write NAME=VALUE, such as --set weight_decay=0.01")
    try:
        return name.strip().replace("-", "_"), parse_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text!r}: the value is no YAML: {error}") from error


def _chosen_saves(layer: dict[str, Any]) -> dict[str, Any]:
    """Return settings in which a named way of saving replaces the one of an earlier layer."""
    if layer.get("save_at"):
        return {**layer, "save_at": _steps(layer["save_at"])}
    if "save_steps" in layer:
        return {"save_strategy": "steps", "save_at": None, **layer}
    return layer


def _one_number_of_toxic(layer: dict[str, Any]) -> dict[str, Any]:
    """Return settings in which a ratio of toxic prompts replaces an earlier number, or this it."""
    ways = ("n_toxic", "toxic_ratio")
    named = [way for way in ways if layer.get(way) is not None]
    return {**dict.fromkeys(ways), **layer} if len(named) == 1 else layer


def _steps(value: Any) -> list[int]:
    """Return steps written as a list or joined by commas.

    Raises:
        UserError: if they are not numbers of steps.
    """
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(str(part).strip().isdigit() for part in parts):
        raise UserError(f"save_at is {value!r}: give steps joined by commas, such as 0,1,2,5,10")
    return [int(part) for part in parts]
