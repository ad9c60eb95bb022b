"""The options of `ntkprobe train`: None where a preset, a file or the stage's default decides."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from ..settings import Flag
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
        model: a folder, a GGUF file, or a name on the hub.
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
        layer: block of the loss, counted from 1; must be given, here or by a preset or file.
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
