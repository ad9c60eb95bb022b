"""What cannot be measured, refused with one line that says what to do: models, prompts, logits."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UserError, require
from .batching import context_length
from .wrappers import is_compiled, is_under_autocast, wrapper_of

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_IDS = (torch.int64, torch.int32)
_WHOLE = "load the checkpoint whole, on devices, in one process"
_UNQUANTISED = "load the checkpoint's unquantised weights"
_PACKED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
_NAMED = 5  # prompts in a message


def check_loaded(model: Any) -> None:
    """Refuse what is no model, such as the name of one, or what a trainer put around one.

    Raises:
        UserError: saying what it is.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the model is a {type(model).__name__}: load it first, as "
            "AutoModelForCausalLM.from_pretrained does"
        )
    inside = wrapper_of(model)
    if inside is not None:
        raise UserError(
            f"the model is wrapped in {type(model).__name__}: give what is inside, model.{inside}"
        )


def check_computable(model: nn.Module) -> None:
    """Refuse a model whose logits would not be those of its weights.

    Raises:
        UserError: for training mode, weights that are elsewhere, a call with rounded operations, or
            an adapter that puts positions of its own in front of a text.
    """
    check_loaded(model)
    check_computes_plainly(model)
    _check_positions(model)
    if model.training:
        raise UserError("the model is in training mode, with dropout: call model.eval() first")
    for name, parameter in model.named_parameters():
        require(not parameter.is_meta, f"{name} is offloaded (on the meta device): {_WHOLE}")


def _check_positions(model: nn.Module) -> None:
    """Refuse a trained prompt in front of the text: its logits are not at the text's positions.

    Raises:
        UserError: naming the kind of adapter.
    """
    configs = getattr(model, "peft_config", None) or {}
    active = getattr(model, "active_adapter", None)
    config = configs.get(active) if isinstance(configs, dict) and isinstance(active, str) else None
    kind = str(getattr(config, "peft_type", "")).rpartition(".")[2]
    if getattr(config, "is_prompt_learning", False) and kind != "PREFIX_TUNING":
        raise UserError(
            f"{kind} adapters put trained positions in front of every text, which are not measured:"
            " use LoRA, or measure the base model"
        )


def check_measurable(model: nn.Module) -> None:
    """Refuse a model whose kernel would be wrong or cannot be had.

    Raises:
        UserError: for what `check_computable` refuses, sharded or quantised weights, an adapter but
            plain LoRA, or a call without autograd.
    """
    check_computable(model)
    require(
        not torch.is_inference_mode_enabled(),
        "called under torch.inference_mode, which has no gradients: call it outside",
    )
    for name, module in model.named_modules():
        _check_module(name, module)
    for name, parameter in model.named_parameters():
        _check_parameter(name, parameter)
    config = getattr(model, "config", None)
    if getattr(model, "hf_quantizer", None) or getattr(config, "quantization_config", None):
        raise UserError(f"the model is quantised: {_UNQUANTISED}")
    for adapter in (getattr(model, "peft_config", None) or {}).values():
        kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
        variants = {type(v).__name__ for m in model.modules() for v in adapter_variants(m)}
        if kind != "LORA" or getattr(adapter, "use_dora", False) or variants:
            named = ", ".join(sorted(variants)) or kind
            raise UserError(
                f"the adapter is no plain LoRA ({named}): call merge_and_unload() first"
            )


def check_computes_plainly(model: nn.Module) -> None:
    """Refuse a model that would compute something else than its weights say.

    Raises:
        UserError: under autocast, or compiled.
    """  # ruff: ignore[docstring-extraneous-exception]
    check_autocast(model)
    for name, module in model.named_modules():
        who = name or "the model"
        require(
            not is_under_autocast(module),
            f"{who} was prepared for mixed precision (bf16 or fp16), so that its forward rounds: "
            "call accelerator.unwrap_model(model, keep_fp32_wrapper=False) first",
        )
        require(not is_compiled(module), f"{who} was compiled: load the model again, uncompiled")


def adapter_variants(module: Any) -> list[Any]:
    """Return what peft does in a LoRA module instead of adding BA: DoRA, aLoRA, VeLoRA, say.

    Args:
        module: any module; one that is no LoRA layer has none.
    """
    variants = getattr(module, "lora_variant", None)
    active = getattr(module, "active_adapters", [])
    if not isinstance(variants, dict):
        return []
    return [variant for adapter, variant in variants.items() if adapter in active]


def _check_module(name: str, module: nn.Module) -> None:
    """Refuse a module whose weights are elsewhere or packed.

    Raises:
        UserError: naming it.
    """
    kinds = type(module).__mro__
    if any("FullySharded" in kind.__name__ or "FSDP" in kind.__name__ for kind in kinds):
        raise UserError(f"the model is sharded by FSDP: {_WHOLE}")
    packed = any(kind.__module__.startswith(_PACKED) for kind in kinds)
    if packed or hasattr(module, "_packed_params"):
        what = f"{name or 'the model'} is quantised ({kinds[0].__name__})"
        raise UserError(f"{what}: {_UNQUANTISED}")


def _check_parameter(name: str, parameter: nn.Parameter) -> None:
    """Refuse a parameter that is in parts, or holds no plain numbers to differentiate by.

    Raises:
        UserError: naming it.
    """
    homes = [kind.__module__ for kind in type(parameter).__mro__]
    if homes[0].startswith("torch.distributed"):
        raise UserError(f"{name} is sharded over processes: {_WHOLE}")
    if parameter.dtype not in _FLOATS or any(home.split(".")[0] == "torchao" for home in homes):
        what = f"{type(parameter).__name__}, {parameter.dtype}"
        raise UserError(f"{name} is quantised ({what}): {_UNQUANTISED}")
    if parameter.is_inference():
        raise UserError(
            f"{name} was made under torch.inference_mode, so that nothing can be differentiated by "
            "it: load the model outside"
        )


def check_autocast(model: nn.Module) -> None:
    """Refuse a call under autocast on a device of the model."""
    rounding = [d for d in {p.device.type for p in model.parameters()} if _rounds(d)]
    require(
        not rounding,
        "called under torch.autocast, which rounds what is differentiated: call it outside",
    )


def _rounds(device: str) -> bool:
    """Return whether operations on a kind of device are cast to a lower precision."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def check_prompts(
    model: nn.Module, prompts: Sequence[Int[Tensor, " _"]], new_tokens: int = 0
) -> None:
    """Refuse prompts, as token ids, that a model cannot read.

    Args:
        model: the model.
        prompts: the token ids of each prompt.
        new_tokens: tokens that come behind each prompt.

    Raises:
        UserError: naming the first prompt that cannot be read.
    """
    require(hasattr(prompts, "__len__"), f"prompts={prompts!r}: give a list of them")
    require(len(prompts), "no prompts: give at least one prompt")
    context, vocabulary = context_length(_text_config(model)), vocabulary_size(model)
    more = f", and with {new_tokens} more to come it" if new_tokens else ", which"
    for row, ids in enumerate(prompts):
        if not isinstance(ids, Tensor) or ids.ndim != 1 or (len(ids) and ids.dtype not in _IDS):
            raise UserError(
                f"prompt {row} is a {_kind(ids)}: give a 1-D tensor of its token ids; texts go to "
                "measure_kernel, which has a tokenizer"
            )
        require(len(ids), f"prompt {row} is empty: it needs at least one token")
        require(
            context is None or len(ids) + new_tokens <= context,
            f"prompt {row} has {len(ids)} tokens{more} exceeds the model's context of {context}: "
            "shorten it, or set max_length",
        )
        require(
            _within(ids, vocabulary),
            f"prompt {row} holds a token outside the vocabulary of {vocabulary}: is the tokenizer "
            "another model's?",
        )


def check_read(
    model: nn.Module, tokens: Sequence[Int[Tensor, " _"] | None], sizes: Sequence[int]
) -> None:
    """Refuse read-outs that do not fit the model or one another.

    Args:
        model: the model.
        tokens: the vocabulary ids read from each prompt, `None` where weightings of all logits are.
        sizes: how many values are read from each.

    Raises:
        UserError: naming the first prompt whose read-out does not fit.
    """
    if len(set(sizes)) != 1 or not sizes[0]:
        raise UserError(
            f"blocks of {sorted(set(sizes))} values: read the same k ≥ 1 of each prompt"
        )
    vocabulary = vocabulary_size(model)
    for row, ids in enumerate(tokens):
        if ids is not None and (not isinstance(ids, Tensor) or ids.dtype not in _IDS):
            raise UserError(f"prompt {row} reads a {_kind(ids)}: give a 1-D tensor of token ids")
        if ids is not None and not _within(ids, vocabulary):
            raise UserError(
                f"prompt {row} reads a token outside the vocabulary of {vocabulary}: ids are "
                "counted from 0"
            )


def vocabulary_size(model: Any) -> int | None:
    """Return how many tokens a model knows; None where neither its configuration nor it says so."""
    size = getattr(_text_config(model), "vocab_size", None)
    if size is None and hasattr(model, "get_input_embeddings"):
        return int(model.get_input_embeddings().weight.shape[0])
    return size


def _text_config(model: nn.Module) -> Any:
    """Return the configuration of the language model, also of a multimodal one, if any."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _within(ids: Int[Tensor, " _"], vocabulary: int | None) -> bool:
    """Return whether token ids are in a vocabulary of this size, if it is known."""
    return int(ids.min()) >= 0 and (vocabulary is None or int(ids.max()) < vocabulary)


def _kind(value: Any) -> str:
    """Return what a value is, for a message."""
    if isinstance(value, Tensor):
        return f"{value.ndim}-D tensor of {value.dtype}"
    return type(value).__name__


def finite(
    logits: Float[Tensor, "batch vocab"], rows: Sequence[int] | None = None
) -> Float[Tensor, "batch vocab"]:
    """Return the logits as they are; a `UserError` if one is NaN or infinite.

    Args:
        logits: of some prompts.
        rows: the numbers of these prompts, where they are known.
    """
    bad = not_finite(logits)
    numbers = bad if rows is None else [rows[row] for row in bad]
    require_none_broken(numbers, logits.dtype, known=rows is not None)
    return logits


def not_finite(logits: Float[Tensor, "batch vocab"]) -> list[int]:
    """Return the rows that hold NaN or infinity."""
    return (~logits.detach().isfinite().all(-1)).nonzero().flatten().tolist()


def require_none_broken(
    broken: Sequence[int], dtype: torch.dtype | None = None, *, known: bool = True
) -> None:
    """Raise if there are prompts whose logits are no numbers.

    Args:
        broken: these prompts, by number.
        dtype: the logits', where it is known.
        known: whether the numbers are those by which the user knows the prompts.

    Raises:
        UserError: naming the first of them, where their numbers are known.
    """
    if not broken:
        return
    each = sorted(set(broken)) if known else []
    named = ", ".join(map(str, each[:_NAMED]))
    more = f" and {len(each) - _NAMED} more" if len(each) > _NAMED else ""
    who = f"prompts {named}{more} have" if len(each) > 1 else f"prompt {named} has"
    cure = "load it in float32, or " if dtype in (None, torch.float16, torch.bfloat16) else ""
    raise UserError(
        f"{who if each else 'a prompt has'} NaN or infinite logits: the weights are damaged, or "
        f"overflow {dtype or 'their precision'}; {cure}measure another checkpoint"
    )


def require_numbers(broken: Tensor, rows: Sequence[int]) -> None:
    """Refuse NaN logits; the `UserError` names the prompts.

    Args:
        broken: [batch] bool, whose logits are no numbers.
        rows: the row numbers of the batch's prompts.
    """
    if broken.any():
        require_none_broken([rows[row] for row in broken.nonzero()[:, 0].tolist()])
