"""Where LoRA goes: the attention projections, found in the architecture, not listed by model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import UserError, one_line
from ..models.architecture import decoder_layers
from .callbacks import quiet

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Names of the projections to queries, keys and values: apart, or fused into one matrix.
APART = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("wq", "wk", "wv"))
FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "att_proj", "W_pack")


def attention_targets(model: "PreTrainedModel") -> list[str]:
    """Return the names of the modules that compute queries, keys and values.

    Args:
        model: a causal language model; some of its blocks may be without attention (Jamba).

    Returns:
        Three names, or the one of a fused projection.

    Raises:
        UserError: if the architecture names them in no known way.
    """
    linear = linear_names(model)
    for names in (*APART, *((name,) for name in FUSED)):
        if all(name in linear for name in names):
            return list(names)
    raise UserError(
        f"no q, k, v projections known in {type(model).__name__}: name modules with "
        f"lora_targets; a block has {sorted(linear)}"
    )


def linear_names(model: "PreTrainedModel", layers: int | None = None) -> set[str]:
    """Return the last names of the linear maps in the blocks, which need not be alike.

    Args:
        model: a causal language model.
        layers: look at the first so many blocks; None for all.
    """
    return {
        name.rpartition(".")[2]
        for block in decoder_layers(model)[:layers]
        for name, module in block.named_modules()
        if _linear(module)
    }


def with_lora(
    model: "PreTrainedModel",
    targets: Sequence[str],
    *,
    rank: int,
    alpha: int,
    dropout: float,
    seed: int,
    layers: int | None = None,
) -> "PeftModel":
    """Return the model with a trainable LoRA adapter, its own parameters frozen.

    Args:
        model: the model, which the adapter is put into.
        targets: last names of the modules to adapt.
        rank: r.
        alpha: the adapter is scaled by alpha / r.
        dropout: on the adapter's input.
        seed: of the adapter's first values.
        layers: adapt the first so many blocks; None for all.

    Returns:
        A PeftModel around `model`.

    Raises:
        UserError: if a name fits no linear map of a block, or peft adapts none of that kind.
    """
    from peft import LoraConfig, get_peft_model

    known = sorted(linear_names(model, layers))  # before peft changes what is there
    blocks = decoder_layers(model)[:layers]
    prefixes = tuple(name + "." for name, module in model.named_modules() if module in blocks)
    chosen = [
        name
        for name, module in model.named_modules()
        if name.startswith(prefixes) and _linear(module) and name.rpartition(".")[2] in targets
    ]
    found = {name.rpartition(".")[2] for name in chosen}
    if unknown := [name for name in targets if name not in found]:
        raise UserError(f"lora_targets: no linear map {unknown[0]!r}; a block has {known}")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets) if layers is None else chosen,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in chosen),
    )
    try:
        with torch.random.fork_rng(), quiet():
            torch.manual_seed(seed)
            made = get_peft_model(model, config)
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"lora_targets: peft puts no adapter there: {one_line(error)} (a block has {known})"
        ) from error
    _require_adapted(made, chosen, whole=layers is not None)
    return made


def _require_adapted(made: "PeftModel", chosen: Sequence[str], *, whole: bool) -> None:
    """Refuse an adapter on other modules than those chosen.

    For some mixtures of experts peft takes `gate_proj` and the like for the experts of all blocks,
    wherever the names that it is given are.

    Args:
        made: the model with its adapter.
        chosen: the names of modules.
        whole: whether `chosen` are all; else a module of such a name elsewhere is one of them.

    Raises:
        UserError: naming a module.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = made.get_base_model().named_modules()
    adapted = {name for name, module in modules if isinstance(module, BaseTunerLayer)}
    names = {name.rpartition(".")[2] for name in chosen}
    strange = {name for name in adapted if whole or name.rpartition(".")[2] not in names} - set(
        chosen
    )
    if wrong := sorted(strange or set(chosen) - adapted):
        how = "also adapts" if strange else "does not adapt"
        raise UserError(
            f"lora_targets: for these names peft {how} {wrong[0]}: give others, of {sorted(names)}"
        )


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)
