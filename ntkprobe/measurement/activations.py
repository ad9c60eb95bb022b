"""What the layers hold at the last position of each prompt, where the answer begins.

The paper's A.9 looks at such activations and does not say at which position.

Directions of refusal, over-refusal and toxicity at named positions and all layers of one model.

Positions: `prompt`, the last token of the user's text; `template_1` …, the template's tokens behind
it, the last of which is where the answer begins; `answer_1`, the first answered token (the most
probable one). What is computed from them is in `ntkprobe.direction_measurement`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..direction_measurement import DirectionMeasurement as DirectionMeasurement
from ..errors import UserError
from ..mitigations.activations import instruction_end
from ..models.architecture import Hook, decoder_layers, hidden_state, hooked, layer_output
from ..models.batching import together
from ..models.generation import length_batches, require_measurable
from ..models.logits import last_logits
from ..models.validation import check_loaded, finite, require
from ..prompts.prompt_set import PromptSet
from ..prompts.templates import Template
from .encoding import Encoded, Texts, as_encoded, evaluating
from .refusals import measure_refusal

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


def measure_directions(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Texts | Encoded,
    *,
    refuses: Sequence[bool | None] | None = None,
    sources: Sequence[str] | None = None,
    layers: Sequence[int] | str = "all",
    template: str | Template = "auto",
    max_length: int | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 32,
) -> DirectionMeasurement:
    """Measure activations at named positions, and which prompts the model refuses.

    Args:
        model: any causal language model, in memory.
        tokenizer: its tokenizer.
        prompts: what to measure on, in the groups `normal`, `seemingly_toxic` and `toxic`.
        refuses: verdicts from elsewhere, such as a judge's; None to let the model answer and to
            take XSTest's prefixes.
        sources: the data set of each prompt, for probes across data sets.
        layers: numbers of blocks, counted from 1, or `all`.
        template: how prompts become tokens.
        max_length: longer prompts lose the end of their text.
        max_new_tokens: of an answer.
        batch_size: prompts at a time.

    Returns:
        Activations and verdicts; directions and what lies along them are its methods.

    Raises:
        UserError: if prompts hold response prefixes, or lists have another length than them.
    """
    check_loaded(model)
    encoded = as_encoded(tokenizer, prompts, template, max_length)
    n = len(encoded.input_ids)
    for name, given in (("refuses", refuses), ("sources", sources)):
        require(given is None or len(given) == n, f"{name} has {given and len(given)} for {n}")
    if any(prompt.response for prompt in encoded.prompts):
        raise UserError("prompts with a response have no last prompt token at a known place")
    if refuses is None:
        refuses = measure_refusal(
            model, tokenizer, encoded, max_new_tokens=max_new_tokens, batch_size=batch_size
        ).refuses
    names, back, of_text = _positions(tokenizer, encoded)
    modules = layer_modules(model, layers)
    found: dict[tuple[str, int], np.ndarray] = {}
    with evaluating(model), torch.no_grad():
        ids = [torch.tensor(row) for row in encoded.input_ids]
        require_measurable(model, ids, room=1)
        first, values = read_layers(model, modules, ids, back, batch_size)
        found |= {
            ("prompt", layer): values[layer][torch.arange(n), of_text].numpy() for layer in modules
        }
        found |= {
            (name, layer): values[layer][:, place].numpy()
            for place, name in enumerate(names[1:], start=len(back) - len(names) + 1)
            for layer in modules
        }
        longer = [torch.cat([row, token[None]]) for row, token in zip(ids, first, strict=True)]
        _, values = read_layers(model, modules, longer, [1], batch_size)
        found |= {("answer_1", layer): values[layer][:, 0].numpy() for layer in modules}
    settings = {
        "layers": list(modules),
        "positions": [*names, "answer_1"],
        **encoded.record,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    verdicts = tuple(None if v is None or pd.isna(v) else bool(v) for v in refuses or [None] * n)
    given = None if sources is None else tuple(sources)
    return DirectionMeasurement(encoded.prompts, verdicts, found, given, settings)


def _positions(
    tokenizer: "PreTrainedTokenizerBase", encoded: Encoded
) -> tuple[list[str], list[int], list[int]]:
    """Return the positions that are read.

    The first of the template's tokens behind the text may merge with its end, in some of the
    prompts (`?` and a line break): it is then no position of its own, and what it merged with is
    the last of the prompt's text.

    Returns:
        The names of positions; how far from a prompt's end each token is that is read, 1 for its
        last; and which of these, for each prompt, is the last of its text.

    Raises:
        UserError: if a prompt ends otherwise than with what the template puts behind its text.
    """
    ending = [] if encoded.template.raw else instruction_end(tokenizer, encoded.template)
    whole = []
    for number, ids in enumerate(encoded.input_ids):
        shared = _shared_end(ids, ending)
        if shared < max(len(ending) - 1, min(len(ending), 1)) or len(ids) <= len(ending):
            raise UserError(f"prompt {number} does not end as the template's other prompts do")
        whole.append(shared == len(ending))
    count = len(ending) if all(whole) else len(ending) - 1
    names = ["prompt", *(f"template_{number}" for number in range(1, count + 1))]
    back = list(range(len(ending) + 1, 0, -1))
    return names, back, [0 if apart else 1 for apart in whole]


def _shared_end(ids: Sequence[int], ending: Sequence[int]) -> int:
    """Return how many tokens at the end of a prompt are those of an ending."""
    pairs = zip(reversed(ids), reversed(ending), strict=False)
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], pairs))
