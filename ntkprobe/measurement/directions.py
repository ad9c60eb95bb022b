"""Directions of refusal, over-refusal and toxicity at named positions and all layers of one model.

Positions: `prompt`, the last token of the user's text; `template_1` …, the template's tokens behind
it, the last of which is where the answer begins; `answer_1`, the first answered token (the most
probable one). What is computed from them is in `ntkprobe.directions`.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import nn

from ..directions.measurement import DirectionMeasurement as DirectionMeasurement
from ..errors import UserError, require
from ..mitigations.activations import instruction_end
from ..models.generation import require_measurable
from ..models.validation import check_loaded
from ..prompts.templates import Template
from .activations import layer_modules, read_layers
from .encoding import Encoded, Texts, as_encoded, evaluating
from .refusals import measure_refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        raise UserError(
            "directions are measured at prompts without an answer: leave their responses out"
        )
    if refuses is None:
        refuses = measure_refusal(
            model, tokenizer, encoded, max_new_tokens=max_new_tokens, batch_size=batch_size
        ).refuses
    names, back, of_text = _positions(tokenizer, encoded)
    modules = layer_modules(model, layers)
    found: dict[tuple[str, int], np.ndarray] = {}
    with evaluating(model), torch.no_grad():
        ids = [torch.tensor(row) for row in encoded.input_ids]
        require_measurable(model, ids, new_tokens=1)
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
