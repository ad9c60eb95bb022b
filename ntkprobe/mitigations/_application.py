"""A method in use: what it changes about a model, and only for as long as the context lasts."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from ..errors import UserError
from ..models.architecture import hooked
from ._interface import Decoding, Mitigation, Steering, require_same_model

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedTokenizerBase


@contextmanager
def applied(
    mitigation: Mitigation | None, model: nn.Module, tokenizer: "PreTrainedTokenizerBase"
) -> Generator["LogitsProcessorList"]:
    """Apply a method to a model; afterwards no trace of it is left.

    Args:
        mitigation: a fitted method; None changes nothing.
        model: the model it was fitted on, with or without an adapter.
        tokenizer: its tokenizer.

    Yields:
        Logits processors for `model.generate`, `generate_answers` and `measure_refusal`; none for
        steering, whose hooks are live inside.

    Raises:
        UserError: if the method was fitted on another model.
    """
    from transformers import LogitsProcessorList

    if mitigation is None:
        yield LogitsProcessorList()
        return
    require_same_model(mitigation, model)
    if isinstance(mitigation, Steering):
        with hooked(mitigation.hooks(model)):
            yield LogitsProcessorList()
    elif isinstance(mitigation, Decoding):
        processor = mitigation.logits_processor(model, tokenizer)
        with hooked(processor.hooks(model) if hasattr(processor, "hooks") else []):
            yield LogitsProcessorList([processor])
    else:
        raise UserError(f"{type(mitigation).__name__} is neither Steering nor Decoding")
