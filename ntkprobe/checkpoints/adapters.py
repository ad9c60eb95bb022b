"""Adapters applied to one base model that stays in memory: only the adapter is loaded.

The adapter is merged, W + ΔW, so that the kernel of the base parameters is the same whether the run
was saved merged or not. Afterwards the base is restored exactly: peft writes into copies.
"""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError, one_line
from ..models.peft_modules import retie, separate_for_merging, untie
from .accounting import require_finite_weights
from .attaching import REFUSALS, attach, plain_lora
from .base_state import BaseState
from .gguf_files import gguf_file
from .headers import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def base_named_by(folder: Path) -> str:
    """Return the `base_model_name_or_path` of an adapter's configuration, which may be empty."""
    return str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")


def base_and_adapter(model: str, adapter: Path | None) -> tuple[str, Path | None]:
    """Return the base and the adapter to load for a model that may be an adapter.

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
    """Apply an adapter to a base in memory inside the `with` block.

    Args:
        base: the model it was trained on; not to be used itself meanwhile.
        folder: best a pin of the checkpoint; its configuration and weights.
        merge: fold it into the base's weights, or keep it beside them (for `lora`).

    Yields:
        The base with merged weights, or a `PeftModel`. Tied ends that the adapter changes
        differently are two parameters.

    Raises:
        UserError: if the adapter does not fit the base, cannot be merged, or is not finite.
    """  # ruff: ignore[docstring-extraneous-exception]
    state = BaseState.of(base)
    try:
        model = attach(base, folder, state)
        if merge:
            model = _merged(model, folder).requires_grad_(True)
        else:
            untie(model)
        require_finite_weights(model, folder.name)
        yield model.eval()
    finally:
        state.restore()


def _merged(model: Any, folder: Path) -> Any:
    """Return the base with the adapter folded into its weights.

    Raises:
        UserError: if peft cannot do that, or what comes out computes something else.
    """
    # In half precision rounding alone can send a token to another expert.
    exact = model.dtype in (torch.float32, torch.float64)
    checked = exact or not plain_lora(model.active_peft_config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ends that are no longer tied, as they should be
            before = _probe_logits(model) if checked else torch.zeros(())
            alike = separate_for_merging(model)
            tied = model.config.tie_word_embeddings
            merged = model.merge_and_unload(safe_merge=True)
            retie(alike)
            if alike:  # peft saw the ends apart
                merged.config.tie_word_embeddings = tied
            after = _probe_logits(merged) if checked else before
    except REFUSALS as error:
        raise UserError(f"{folder.name}: cannot merge the adapter: {one_line(error)}") from error
    slack = 1e-3 if exact else 0.1
    if not bool((after - before).abs().max() <= slack * before.abs().max()):
        raise UserError(
            f"{folder.name}: merged, the adapter computes something else than beside the base: "
            "measure a model that was saved merged, or use LoRA"
        )
    return merged


@torch.no_grad()
def _probe_logits(model: Any) -> "Tensor":
    ids = torch.arange(4, device=model.get_input_embeddings().weight.device)[None]
    return model.eval()(input_ids=ids, use_cache=False).logits[:, -1]
