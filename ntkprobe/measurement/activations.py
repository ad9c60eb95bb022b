"""What the layers hold at the last position of each prompt, where the answer begins.

The paper's A.9 looks at such activations and does not say at which position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import require
from ..models.architecture import Hook, decoder_layers, hidden_state, hooked, layer_output
from ..models.batching import together
from ..models.generation import length_batches, require_measurable
from ..models.logits import last_logits
from ..models.validation import check_loaded, finite
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
    modules = layer_modules(model, layers)
    ids = [torch.tensor(row) for row in encoded.input_ids]
    with evaluating(model), torch.no_grad():
        require_measurable(model, ids)
        _, values = read_layers(model, modules, ids, [1], batch_size)
    settings = {
        "layers": list(modules),
        **encoded.record,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    last = {number: at[:, 0] for number, at in values.items()}
    return ActivationMeasurement(encoded.prompts, last, settings)


def layer_modules(model: nn.Module, layers: Sequence[int] | str) -> dict[int, nn.Module]:
    """Return the modules whose output is read, by layer.

    Args:
        model: any causal language model.
        layers: numbers of blocks, counted from 1, or `all`; anything else is a `UserError`.
    """
    allowed = not isinstance(layers, str) or layers == "all"
    require(allowed, f"layers={layers!r}: give numbers of blocks, counted from 1, or 'all'")
    numbers = range(1, len(decoder_layers(model)) + 1) if isinstance(layers, str) else layers
    return {number: layer_output(model, number) for number in sorted(set(numbers))}


def read_layers(
    model: nn.Module,
    modules: dict[int, nn.Module],
    ids: list[Tensor],
    back: list[int],
    batch_size: int,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return each prompt's most probable next token `[n]`, and each layer `[n, positions, hidden]`.

    Args:
        model: in evaluation mode.
        modules: those whose output is read, by layer.
        ids: the prompts' tokens.
        back: positions, counted from each prompt's end.
        batch_size: prompts at a time.

    Returns:
        Tokens, and activations in float32 on the CPU.
    """
    tokens = torch.zeros(len(ids), dtype=torch.long)
    rows: dict[int, list[Tensor]] = {number: [torch.empty(0)] * len(ids) for number in modules}
    for batch in _batches(model, ids, batch_size):
        prompts = [ids[row] for row in batch]
        places = torch.tensor([[len(row) - b for b in back] for row in prompts])

        def keeping(number: int, batch: list[int] = batch, places: Tensor = places) -> Hook:
            def keep(module: nn.Module, inputs: Any, output: Any) -> None:
                values = hidden_state(output)
                prompt = torch.arange(len(places), device=values.device)[:, None]
                at = values[prompt, places.to(values.device)].float().cpu()
                for row, value in zip(batch, at, strict=True):
                    rows[number][row] = value

            return keep

        with hooked([(module, keeping(number)) for number, module in modules.items()]):
            logits = finite(last_logits(model, prompts), batch)
        tokens[batch] = logits.argmax(-1).cpu()
    return tokens, {number: torch.stack(values) for number, values in rows.items()}


def _batches(model: nn.Module, ids: list[Tensor], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of prompts that share a pass."""
    for batch in length_batches(ids, batch_size):
        for rows in together(model, [ids[row] for row in batch]):
            yield [batch[row] for row in rows]
