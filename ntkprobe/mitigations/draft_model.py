"""The draft model of SSD: a smaller model with the same vocabulary."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import LoadSettings, load_model, load_tokenizer
from ..errors import UserError
from ..models.generation import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_draft(name: str, model: Any, tokenizer: "PreTrainedTokenizerBase") -> Any:
    """Return the model in a folder, on the device and in the precision of another.

    Args:
        name: its folder, or a name on the hub.
        model: the model that it is contrasted with.
        tokenizer: that model's.

    Returns:
        A model in evaluation mode.

    Raises:
        UserError: if none is named, it cannot be loaded, or it has another vocabulary.
    """
    if not name:
        raise UserError("SSD has no draft: set draft to the folder of a small model")
    own = load_tokenizer(name, local=False).get_vocab()
    if own != tokenizer.get_vocab():
        raise UserError(
            f"the draft {Path(name).name} has another vocabulary ({len(own)} tokens; the model has "
            f"{len(tokenizer)}): choose a smaller model of the same family"
        )
    dtype = str(model.dtype).removeprefix("torch.")
    return load_model(name, LoadSettings(dtype=dtype, device=str(input_device(model))))
