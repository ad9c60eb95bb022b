"""Adapters over one base that stays in memory: a checkpoint costs its own bytes, not a model load.

Merged, W + ΔW, the model is a plain one: the kernel of its base parameters is the same number
whether the run was saved merged or not. Afterwards the base is back bit for bit, because the merged
weights were new tensors.
"""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .completeness import ADAPTER
from .gguf_files import gguf_file
from .headers import read_json
from .loading import insist_on_finite_weights

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

# The initialisations that leave the base weights alone: empty tensors are enough to load into.
PLAIN_INITIALISATIONS = (True, False, "gaussian")


def base_named_by(folder: Path) -> str:
    """Return the `base_model_name_or_path` of an adapter's configuration, which may be empty."""
    return str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")


def base_and_adapter(model: str, adapter: Path | None) -> tuple[str, Path | None]:
    """Return what to load where a model is named that may be an adapter: its base, and itself.

    Args:
        model: a folder or hub name.
        adapter: the adapter, if one was named apart.
    """
    if adapter is None and (Path(model) / "adapter_config.json").is_file():
        return str(base_folder_of(Path(model))), Path(model)
    return model, adapter


def base_folder_of(adapter: Path) -> Path:
    """Return the folder (or GGUF file) of the model below an adapter, fetched from nowhere.

    Args:
        adapter: a checkpoint with `adapter_config.json`.

    Returns:
        The folder that it names; a relative path may be meant from the run, which is often moved
        together with its base.

    Raises:
        UserError: if it names no local folder.
    """
    named = base_named_by(adapter)
    places = [Path(named), *(parent / named for parent in adapter.resolve().parents[:3])]
    folders = [place for place in places if named and _is_model(place)]
    if not folders:
        raise UserError(
            f"{adapter} was trained on {named or 'a model not named'}, which is no folder here:"
            f" give it with --model{f' {named}' if named else ''}"
        )
    return folders[0]


def _is_model(place: Path) -> bool:
    """Return whether a path is that of a model: a folder with its configuration, or a GGUF file."""
    return (place / "config.json").is_file() or gguf_file(place) is not None


@contextmanager
def adapted(
    base: "PreTrainedModel", folder: Path, *, merge: bool = True
) -> Generator["nn.Module", None, None]:
    """Apply an adapter to a base in memory for as long as the block lasts.

    Args:
        base: the model it was trained on; not to be used itself meanwhile.
        folder: best a pin of the checkpoint; its configuration and weights.
        merge: fold it into the base's weights, or keep it beside them (for `lora`).

    Yields:
        The base with merged weights, or a `PeftModel`.

    Raises:
        UserError: if the adapter does not fit the base, cannot be merged, or is not finite.
    """
    undo = _snapshot(base)
    try:
        model = _attach(base, folder)
        if merge:
            try:
                model = model.merge_and_unload(safe_merge=True).requires_grad_(True)
            except (ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
                raise UserError(f"{folder.name}: cannot merge the adapter: {error}") from error
        insist_on_finite_weights(model, folder.name)
        yield model.eval()
    finally:
        _restore(base, undo)


def _attach(base: "PreTrainedModel", folder: Path) -> Any:
    """Return a PeftModel over `base` with every tensor of the adapter in its place, and no other.

    Raises:
        UserError: if some tensor is missing, left over, or of another shape.
    """
    from peft import PeftConfig, PeftModelForCausalLM, set_peft_model_state_dict
    from safetensors.torch import load

    try:
        config = PeftConfig.from_pretrained(str(folder), local_files_only=True)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder.name}: adapter_config.json cannot be used: {error}") from error
    if config.is_prompt_learning:
        raise UserError(
            f"{folder.name}: {config.peft_type} adapters have no merged weights; use LoRA"
        )
    config.inference_mode = True
    empty = getattr(config, "init_lora_weights", True) in PLAIN_INITIALISATIONS
    # load(bytes), not load_file: a memory-mapped file that shrinks kills the process.
    tensors = load((folder / ADAPTER).read_bytes())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers the old way
            model = PeftModelForCausalLM(base, config, low_cpu_mem_usage=empty)
        report: Any = set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=empty)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder.name}: the adapter does not fit the base: {error}") from error
    missing = [key for key in report.missing_keys if ".default" in key]
    if missing or report.unexpected_keys:
        wrong = (missing or list(report.unexpected_keys))[0]
        raise UserError(f"{folder.name}: the adapter does not fit the base: {wrong}")
    return model


def _snapshot(base: "nn.Module") -> list[tuple["nn.Module", dict, dict, dict]]:
    """Return every module's children, parameters and their tensors, by reference."""
    return [
        (
            module,
            dict(module._modules),
            dict(module._parameters),
            {
                name: (value.data, value.requires_grad)
                for name, value in module._parameters.items()
                if value is not None
            },
        )
        for module in base.modules()
    ]


def _restore(base: "nn.Module", undo: list[tuple["nn.Module", dict, dict, dict]]) -> None:
    """Put back what `_snapshot` saw."""
    for module, children, parameters, tensors in undo:
        module._modules.clear()
        module._modules.update(children)
        module._parameters.clear()
        module._parameters.update(parameters)
        for name, (data, requires_grad) in tensors.items():
            parameters[name].data = data
            parameters[name].requires_grad_(requires_grad)
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        base.__dict__.pop(attribute, None)
