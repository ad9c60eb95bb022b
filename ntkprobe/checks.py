"""What cannot be measured, refused with one line that says what to do."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .errors import UserError

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WHOLE = "load the checkpoint whole, on devices, in one process"
_UNQUANTISED = "load the checkpoint's unquantised weights"


def refuse(wrong: bool, why: str) -> None:
    """Do nothing unless `wrong`.

    Raises:
        UserError: saying `why`, where it is wrong.
    """
    if wrong:
        raise UserError(why)


def check_measurable(model: nn.Module) -> None:
    """Refuse a model whose kernel would be wrong or cannot be had.

    Raises:
        UserError: for training mode, offloaded, sharded or quantised weights, an adapter but LoRA.
    """
    if model.training:
        raise UserError("the model is in training mode, with dropout: call model.eval() first")
    for module in model.modules():
        if any("FullySharded" in c.__name__ or "FSDP" in c.__name__ for c in type(module).__mro__):
            raise UserError(f"the model is sharded by FSDP: {_WHOLE}")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UserError(f"{name} is offloaded (on the meta device): {_WHOLE}")
        if type(parameter).__module__.startswith("torch.distributed"):
            raise UserError(f"{name} is sharded over processes: {_WHOLE}")
        if parameter.dtype not in _FLOATS:
            raise UserError(f"{name} is quantised ({parameter.dtype}): {_UNQUANTISED}")
    config = getattr(model, "config", None)
    if getattr(model, "hf_quantizer", None) or getattr(config, "quantization_config", None):
        raise UserError(f"the model is quantised: {_UNQUANTISED}")
    for adapter in getattr(model, "peft_config", {}).values():
        kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
        if kind != "LORA" or getattr(adapter, "use_dora", False):
            raise UserError(f"the adapter is no plain LoRA ({kind}): call merge_and_unload() first")


def check_fit(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    tokens: Sequence[Int[Tensor, " _"] | None],
    sizes: Sequence[int],
) -> None:
    """Refuse prompts and read-outs that do not fit the model or one another.

    Args:
        model: the model.
        prompts: the token ids of each prompt.
        tokens: the vocabulary ids read from each, `None` where weightings of all logits are.
        sizes: how many values are read from each.

    Raises:
        UserError: naming the first prompt that does not fit.
    """
    config = getattr(model, "config", None)
    context = getattr(config, "max_position_embeddings", None) or math.inf
    vocabulary = getattr(config, "vocab_size", None) or math.inf
    if len(set(sizes)) != 1 or not sizes[0]:
        raise UserError(
            f"blocks of {sorted(set(sizes))} values: read the same k ≥ 1 of each prompt"
        )
    for row, (prompt, read) in enumerate(zip(prompts, tokens, strict=True)):
        if len(prompt) > context:
            raise UserError(f"prompt {row}: {len(prompt)} tokens in a context of {context}; cut it")
        for what, ids in (("holds", prompt), ("reads", read)):
            if ids is not None and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
                raise UserError(
                    f"prompt {row} {what} a token outside the vocabulary of {vocabulary}"
                )


def finite(logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
    """Return the logits as they are.

    Raises:
        UserError: if one is NaN or infinite.
    """
    bad = (~logits.detach().isfinite().all(-1)).nonzero()
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(logits)} prompts have NaN or infinite logits, the first at row "
            f"{int(bad[0])} of its batch: the checkpoint is damaged, or overflows {logits.dtype}"
        )
    return logits
