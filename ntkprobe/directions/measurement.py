"""What lies along the directions of refusal, over-refusal and toxicity, layer by layer. No torch.

Of activations at named positions, as `measure_directions` and `ntkprobe measure --only directions`
keep them; the arithmetic is in `differences`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from ..prompts.prompt_set import Prompt, PromptSet
from ..statistics import RESAMPLES
from . import differences


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
    def classes(self) -> list[differences.Classes]:
        """The classes of each direction that the prompts and verdicts allow."""
        return differences.classes(self.groups, self.refuses, self.sources)

    def separation(
        self, *, resamples: int = RESAMPLES, permutations: int = differences.PERMUTATIONS
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
            return pd.DataFrame([differences.separation(values, c, **how) for c in self.classes])

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
                differences.projections(values, c, self.groups, resamples=resamples)
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
            lambda values: differences.cosines(values, self.classes, resamples=resamples)
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
            lambda values: differences.probe_accuracy(values[rows], labels, list(sources))
        )

    @property
    def answer_start(self) -> str:
        """The position at which the answer begins: the last one before the first answered token."""
        positions = dict.fromkeys(position for position, _ in self.activations)
        return [name for name in positions if not name.startswith("answer_")][-1]

    def at_answer_start(self) -> dict[int, np.ndarray]:
        """Return what each layer holds where the answer begins, `[n, hidden]`."""
        place = self.answer_start
        return {layer: v for (name, layer), v in self.activations.items() if name == place}

    def drift_from(self, before: "DirectionMeasurement") -> pd.DataFrame:
        """Return how directions turned and groups moved since another model, such as the base.

        Positions are compared by name, and where the answer begins with where it begins, as
        `answer_start`: the tokens of two templates are not the same positions.

        Args:
            before: measured on the same prompts; the classes are this measurement's.

        Returns:
            `position, layer, what, name, value`, as `differences.drift` has it.

        Raises:
            UserError: if the prompts, the layers or the width are others.
        """
        if before.prompts.digest != self.prompts.digest:
            raise UserError("measured on other prompts: drift compares the same prompts")
        old, new = (one.activations | one._named_start() for one in (before, self))
        names = [[name for name, _ in one.activations] for one in (before, self)]
        alike = set(names[0]) == set(names[1])
        shared = [
            key for key in new if key in old and (alike or not key[0].startswith("template_"))
        ]
        widths = {new[key].shape == old[key].shape for key in shared}
        if widths != {True}:
            raise UserError("measured at other layers, or of another width: nothing to compare")
        tables = {
            key: differences.drift(old[key], new[key], self.classes, self.groups) for key in shared
        }
        return _named(tables)

    def _named_start(self) -> dict[tuple[str, int], np.ndarray]:
        return {("answer_start", layer): v for layer, v in self.at_answer_start().items()}

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


def direction_measurement(
    prompts: pd.DataFrame, tensors: dict[str, np.ndarray]
) -> DirectionMeasurement:
    """Return a measurement from its file.

    Args:
        prompts: `prompts.parquet` of the folder.
        tensors: `POSITION.layer_ℓ`, `[n, hidden]` each, and `refuses`, `[n]`: 1, 0, or -1.
    """
    names = [name for name in tensors if name != "refuses"]
    keys = [(name.partition(".layer_")[0], int(name.rpartition("_")[2])) for name in names]
    found = dict(zip(keys, (tensors[name] for name in names), strict=True))
    verdicts = [None if value < 0 else bool(value) for value in tensors["refuses"]]
    return DirectionMeasurement(
        _prompt_set(prompts),
        tuple(verdicts),
        {key: found[key] for key in sorted(found, key=_place)},
        settings={"positions": list(dict.fromkeys(key[0] for key in sorted(found, key=_place)))},
    )


def at_last_position(
    prompts: pd.DataFrame, layers: dict[int, np.ndarray], refuses: pd.Series
) -> DirectionMeasurement:
    """Return a measurement from activations at the prompts' last position alone.

    Args:
        prompts: `prompts.parquet` of the folder.
        layers: `[n, hidden]` for each.
        refuses: of each prompt by its number, as far as it is known.
    """
    rows = prompts["prompt"].to_numpy()
    found = [refuses.get(row) for row in rows]
    verdicts = tuple(None if v is None or pd.isna(v) else bool(v) for v in found)
    values = {("last", layer): np.asarray(each)[rows] for layer, each in layers.items()}
    return DirectionMeasurement(
        _prompt_set(prompts), verdicts, values, settings={"positions": ["last"]}
    )


def _prompt_set(prompts: pd.DataFrame) -> PromptSet:
    texts = zip(prompts["text"], prompts["group"], strict=True)
    return PromptSet(tuple(Prompt(text, group) for text, group in texts))


def _place(key: tuple[str, int]) -> tuple[int, int, int]:
    """Return where a position and layer stand: the prompt, its template, the answer."""
    kind, _, number = key[0].partition("_")
    return ("prompt", "template", "answer").index(kind), int(number or 0), key[1]


def step_to_step(
    steps: Sequence[int], measured: Callable[[int], DirectionMeasurement]
) -> pd.DataFrame:
    """Return the drift of every step from the one before it, and from the first.

    Args:
        steps: ascending.
        measured: returns the measurement of a step.

    Returns:
        `step, since, position, layer, what, name, value`.
    """
    columns = ["step", "since", "position", "layer", "what", "name", "value"]
    tables = []
    first = before = (steps[0], measured(steps[0])) if steps else None
    for step in steps[1:]:
        now = measured(step)
        for since, earlier in dict([pair for pair in (first, before) if pair]).items():
            try:
                table = now.drift_from(earlier)
            except UserError:  # of another width: nothing to compare
                continue
            tables.append(table.assign(step=step, since=since))
        before = step, now
    return (
        pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
    )
