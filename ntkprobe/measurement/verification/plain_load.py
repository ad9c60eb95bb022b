"""A model loaded by transformers and peft alone, without this package's own loading."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...checkpoints import LoadSettings, gguf_file
from ...checkpoints.gguf_models import no_bars
from ...checkpoints.safeguards import checked_config
from ...errors import UserError

# Raised by transformers, peft and torch for files that they cannot load as a model.
FAILURES = (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError)


class WrongMeasurement(RuntimeError):
    """A measurement differs from the checkpoint that it names."""


def load_plainly(name: str, adapter: Path | None, load: LoadSettings) -> nn.Module:
    """Return a model by `from_pretrained`, its adapter beside it.

    Args:
        name: the folder or hub name of the model, or of the base below the adapter.
        adapter: the adapter's folder.
        load: precision, device and attention.

    Returns:
        The model in evaluation mode; what an adapter trains requires gradients.

    Raises:
        UserError: if it cannot be loaded.
        WrongMeasurement: if the files hold weights that the model has no place for, or lack some.
    """
    try:
        model, report = _from_pretrained(name, load)
        _check_report(model, report, name)
        model = model if load.device_map else model.to(load.placement())
        return (model if adapter is None else _with_adapter(model, adapter)).eval()
    except (UserError, WrongMeasurement):
        raise
    except FAILURES as error:
        raise UserError(f"cannot load {adapter or name} once more to compare: {error}") from error


def _from_pretrained(name: str, load: LoadSettings) -> tuple[Any, dict[str, Any]]:
    """Return the model without an adapter, and what transformers says about its weights."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    file = gguf_file(name)
    options: dict[str, Any] = {"device_map": load.device_map} if load.device_map else {}
    if file is not None:
        name, options["gguf_file"] = str(file.parent), file.name
    elif Path(name).is_dir():  # keys of its config.json that name other files are dropped
        values = checked_config(Path(name) / "config.json")
        options["config"] = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    with no_bars() if file is not None else nullcontext():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=getattr(torch, load.dtype),
            attn_implementation=load.attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=Path(name).is_dir(),
            output_loading_info=True,
            **options,
        )
    return loaded


def _check_report(model: nn.Module, report: dict[str, Any], name: str) -> None:
    """Raise where the files and the model do not hold the same weights.

    Raises:
        WrongMeasurement: naming them.
    """
    # transformers 5 stores no buffer that a model computes; older files may hold its values.
    computed = {key for key, _ in model.named_buffers()}
    left = sorted(
        key
        for key in map(str, report["unexpected_keys"])
        if key not in computed and not key.endswith(".masked_bias")
    )
    lacking = sorted(map(str, report["missing_keys"]))
    for what, keys in (("weights that the model has no place for:", left), ("no", lacking)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise WrongMeasurement(f"{name} holds {what} {', '.join(keys[:3])}{more}")


def _with_adapter(model: Any, adapter: Path) -> nn.Module:
    """Return the model with its adapter beside it, what the adapter trains requiring gradients."""
    from peft import PeftModel

    rows = _embedding_rows(model, adapter)
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    wrapped = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    _separate_ends(wrapped)
    return wrapped


def _embedding_rows(model: Any, adapter: Path) -> int | None:
    """Return how many tokens an adapter's file gives the embedding or head; None if it does not."""
    from safetensors import safe_open

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [f"base_model.model.{n}" for n, m in model.named_modules() if m in ends]
    dimensions = {".weight": 0, ".base_layer.weight": 0, ".lora_B.weight": 0}
    dimensions[".lora_embedding_A"] = 1
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        held = set(file.keys())
        for name in names:
            for suffix, dimension in dimensions.items():
                if name + suffix in held:
                    return int(file.get_slice(name + suffix).get_shape()[dimension])
    return None


def _separate_ends(model: Any) -> None:
    """Give the head a matrix of its own where it was the embedding and LoRA changes them apart.

    Merged, the two are different matrices, and so parameters of their own.
    """
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    lora = any(isinstance(end, LoraLayer) for end in ends)
    if not lora or getattr(model.active_peft_config, "ensure_weight_tying", False):
        return
    source, output = (getattr(end, "base_layer", end) for end in ends)
    if output is not None and output.weight is source.weight:
        output.weight = nn.Parameter(source.weight.detach().clone())


def adds_low_rank_only(model: nn.Module) -> bool:
    """Return whether a model has no adapter, or one that adds s·BA to matrices and nothing else.

    Then the gradient of a matrix below it is that of the merged matrix W + s·BA; in DoRA, IA3, LoHa
    and others it is not.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return all(
        isinstance(module, LoraLayer | AuxiliaryTrainingWrapper)
        and not getattr(module, "lora_variant", None)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer)
    )


def merged(model: Any) -> nn.Module:
    """Return a model with its adapter folded into its weights, by peft alone."""
    return model.merge_and_unload(safe_merge=True)
