"""Directions of refusal, over-refusal and toxicity at named positions and all layers of one model.

Positions: `prompt`, the last token of the user's text; `template_1` …, the template's tokens behind
it, the last of which is where the answer begins; `answer_1`, the first answered token (the most
probable one). What is computed from the activations is in `ntkprobe.directions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from .. import directions
from ..errors import UserError
from ..mitigations.activations import instruction_end
from ..models.generation import require_measurable
from ..models.validation import check_loaded, refuse
from ..prompts.prompt_set import PromptSet
from ..prompts.templates import Template
from ..statistics import RESAMPLES
from .activations import layer_modules, read_layers
from .encoding import Encoded, Texts, as_encoded, evaluating
from .refusals import measure_refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class DirectionMeasurement:
    """What the layers hold at named positions of n prompts, and which prompts were refused.

    Attributes:
        prompts: what was measured on.
        refuses: whether each was refused; None where this is not known.
        activations: `[n, hidden]` float32 for each (position, layer ℓ); layers count from 1.
        sources: the data set of each prompt, if given.
        settings: everything that the numbers depend on.
    """

    prompts: PromptSet
    refuses: tuple[bool | None, ...]
    activations: dict[tuple[str, int], np.ndarray]
    sources: tuple[str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def groups(self) -> list[str]:
        """The group of each prompt."""
        return [prompt.group for prompt in self.prompts]

    @cached_property
    def classes(self) -> list[directions.Classes]:
        """The classes of each direction that the prompts and verdicts allow."""
        return directions.classes(self.groups, self.refuses, self.sources)

    def separation(
        self, *, resamples: int = RESAMPLES, permutations: int = directions.PERMUTATIONS
    ) -> pd.DataFrame:
        """Return how well each held-out direction tells its classes apart, everywhere.

        Args:
            resamples: of the stratified bootstrap over prompts.
            permutations: of the verdicts, or of the groups, within strata.

        Returns:
            `position, layer, direction, value` (AUC), `low, high, p_value, positive, negative`.
        """

        def rows(values: np.ndarray) -> pd.DataFrame:
            how = {"resamples": resamples, "permutations": permutations}
            return pd.DataFrame([directions.separation(values, c, **how) for c in self.classes])

        return self._everywhere(rows)

    def projections(self, *, resamples: int = RESAMPLES) -> pd.DataFrame:
        """Return where each group lies along each direction; 0 and 1 are its classes' means.

        Args:
            resamples: of the bootstrap over a group's prompts.

        Returns:
            `position, layer, direction, group, value, low, high, prompts`.
        """
        return self._everywhere(
            lambda values: pd.concat(
                directions.projections(values, c, self.groups, resamples=resamples)
                for c in self.classes
            )
        )

    def cosines(self, *, resamples: int = 999) -> pd.DataFrame:
        """Return the cosine of every two directions: `position, layer, direction, other, value, …`.

        Args:
            resamples: of the bootstrap over prompts.

        Returns:
            A row per position, layer and pair, with `low` and `high`.
        """
        return self._everywhere(
            lambda values: directions.cosines(values, self.classes, resamples=resamples)
        )

    def probe_accuracy(self, positive: str = "toxic", negative: str = "normal") -> pd.DataFrame:
        """Return how well a linear probe tells two groups apart, within and across sources.

        Args:
            positive: a group.
            negative: another one.

        Returns:
            `position, layer, held_out, source, value, low, high, prompts`.

        Raises:
            UserError: if no sources were given, or a group has no prompts.
        """
        if self.sources is None:
            raise UserError("no sources: give measure_directions the data set of each prompt")
        group = np.asarray(self.groups, dtype=object)
        for name in (positive, negative):
            if not (group == name).any():
                raise UserError(f"no prompts in {name!r}: choose from {sorted(set(self.groups))}")
        rows = np.flatnonzero((group == positive) | (group == negative))
        labels, sources = group[rows] == positive, np.asarray(self.sources, dtype=object)[rows]
        return self._everywhere(
            lambda values: directions.probe_accuracy(values[rows], labels, list(sources))
        )

    def drift_from(self, before: "DirectionMeasurement") -> pd.DataFrame:
        """Return how directions turned and groups moved since another model, such as the base.

        Args:
            before: measured on the same prompts; the classes are this measurement's.

        Returns:
            `position, layer, what, name, value`, as `ntkprobe.directions.drift` has it.

        Raises:
            UserError: if the prompts, the layers or the width are others.
        """
        if before.prompts.digest != self.prompts.digest:
            raise UserError("measured on other prompts: drift compares the same prompts")
        shared = [key for key in self.activations if key in before.activations]
        widths = {self.activations[k].shape == before.activations[k].shape for k in shared}
        if widths != {True}:
            raise UserError("measured at other layers, or of another width: nothing to compare")
        tables = {
            key: directions.drift(
                before.activations[key], self.activations[key], self.classes, self.groups
            )
            for key in shared
        }
        return _named(tables)

    def _everywhere(self, rows: Callable[[np.ndarray], pd.DataFrame]) -> pd.DataFrame:
        if not self.classes:
            raise UserError(
                "no direction: it takes two prompts or more in both classes, refused and answered "
                "ones, or toxic and normal ones"
            )
        return _named({key: rows(values) for key, values in self.activations.items()})

    def __repr__(self) -> str:
        places = list(dict.fromkeys(position for position, _ in self.activations))
        layers = len({layer for _, layer in self.activations})
        names = [c.name for c in self.classes]
        return (
            f"DirectionMeasurement({self.prompts.describe()}, {names}, {places}, {layers} layers)"
        )


def _named(tables: dict[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    whole = pd.concat(tables, names=["position", "layer"]).reset_index(["position", "layer"])
    return whole.reset_index(drop=True)


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
        refuse(given is not None and len(given) != n, f"{name} has {given and len(given)} for {n}")
    if any(prompt.response for prompt in encoded.prompts):
        raise UserError("prompts with a response have no last prompt token at a known place")
    if refuses is None:
        refuses = measure_refusal(
            model, tokenizer, encoded, max_new_tokens=max_new_tokens, batch_size=batch_size
        ).refuses
    names, back = _positions(tokenizer, encoded)
    modules = layer_modules(model, layers)
    found: dict[tuple[str, int], np.ndarray] = {}
    with evaluating(model), torch.no_grad():
        ids = [torch.tensor(row) for row in encoded.input_ids]
        require_measurable(model, ids, room=1)
        first, values = read_layers(model, modules, ids, back, batch_size)
        found |= {
            (name, layer): values[layer][:, place].numpy()
            for place, name in enumerate(names)
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
) -> tuple[list[str], list[int]]:
    """Return the names of positions, and how far from a prompt's end each is, 1 for its last.

    Raises:
        UserError: if a prompt ends otherwise than with what the template puts behind its text.
    """
    ending = [] if encoded.template.raw else instruction_end(tokenizer, encoded.template)
    names = ["prompt", *(f"template_{number}" for number in range(1, len(ending) + 1))]
    for number, ids in enumerate(encoded.input_ids):
        if list(ids[len(ids) - len(ending) :]) != ending or len(ids) <= len(ending):
            raise UserError(f"prompt {number} does not end as the template's other prompts do")
    return names, list(range(len(ending) + 1, 0, -1))
