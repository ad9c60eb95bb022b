"""What the layers hold at the last position of each prompt, where the answer begins.

The paper's A.9 looks at such activations and does not say at which position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models.architecture import Hook, decoder_layers, hidden_state, hooked, layer_output
from ..models.batching import together
from ..models.generation import length_batches, require_measurable
from ..models.logits import last_logits
from ..models.validation import check_loaded, finite, refuse
from ..prompts.prompt_set import PromptSet
from ..prompts.templates import Template
from .encoding import Encoded, Texts, as_encoded, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class ActivationMeasurement:
    """The activations of n prompts.

    Attributes:
        prompts: what was measured on.
        layers: `[n, hidden]` float32 for each layer ℓ, the output of decoder block ℓ (from 1).
        settings: everything that the numbers depend on.
    """

    prompts: PromptSet
    layers: dict[int, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"ActivationMeasurement({self.prompts.describe()}, layers {list(self.layers)})"


def measure_activations(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Texts | Encoded,
    *,
    layers: Sequence[int] | str = "all",
    template: str | Template = "auto",
    max_length: int | None = None,
    batch_size: int = 32,
) -> ActivationMeasurement:
    """Measure the output of decoder blocks at every prompt's last position.

    Args:
        model: any causal language model, in memory.
        tokenizer: its tokenizer.
        prompts: what to measure on.
        layers: numbers of blocks, counted from 1, or `all`.
        template: how prompts become tokens.
        max_length: longer prompts lose the end of their text.
        batch_size: prompts at a time, which changes no number.

    Returns:
        A matrix for each layer; a layer that the model does not have is a `UserError`.
    """
    check_loaded(model)
    encoded = as_encoded(tokenizer, prompts, template, max_length)
    named = isinstance(layers, str) and layers != "all"
    refuse(named, f"layers={layers!r}: give numbers of blocks, counted from 1, or 'all'")
    numbers = range(1, len(decoder_layers(model)) + 1) if isinstance(layers, str) else layers
    modules = {number: layer_output(model, number) for number in sorted(set(numbers))}
    ids = [torch.tensor(row) for row in encoded.input_ids]
    found: dict[int, list[Tensor]] = {number: [torch.empty(0)] * len(ids) for number in modules}
    with evaluating(model), torch.no_grad():
        require_measurable(model, ids)
        for rows in _batches(model, ids, batch_size):
            for number, values in _last_positions(model, modules, ids, rows):
                for row, value in zip(rows, values, strict=True):
                    found[number][row] = value
    settings = {
        "layers": list(modules),
        **encoded.record,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    stacked = {number: torch.stack(values) for number, values in found.items()}
    return ActivationMeasurement(encoded.prompts, stacked, settings)


def _batches(model: nn.Module, ids: list[Tensor], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of prompts that share a pass."""
    for batch in length_batches(ids, batch_size):
        for rows in together(model, [ids[row] for row in batch]):
            yield [batch[row] for row in rows]


def _last_positions(
    model: nn.Module, modules: dict[int, nn.Module], ids: list[Tensor], batch: list[int]
) -> list[tuple[int, Tensor]]:
    """Return each layer's output `[batch, hidden]` at the last position of a batch of prompts."""
    prompts = [ids[row] for row in batch]
    last = torch.tensor([len(ids) - 1 for ids in prompts])
    found: list[tuple[int, Tensor]] = []

    def keeping(number: int) -> Hook:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            values = hidden_state(output)
            rows = torch.arange(len(last), device=values.device)
            found.append((number, values[rows, last.to(values.device)].float().cpu()))

        return keep

    with hooked([(module, keeping(number)) for number, module in modules.items()]):
        finite(last_logits(model, prompts), batch)
    return found
