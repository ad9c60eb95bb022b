"""The Gram estimator: the kernel as inner products of gradients that are never formed.

1. The model runs forward once; what enters each block is kept.
2. From the top down, a block at a time, it runs again and the k values' gradients are taken at the
   outputs of every operation that uses a selected parameter (k backward passes in all).
3. Each operation's inputs and output gradients are the factors of its parameter's per-prompt
   gradients; their inner products, in the cheapest order, are added up, and the factors dropped.

Exact: K is a sum over parameters, and each summand is computed in full.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ...checks import refuse
from ...errors import UserError
from ...hooks import decoder_list, experts_one_by_one
from ...kernel import Blocks, Probe, prepare
from ...parameters import ParameterSelection, Part, parse_selections, part_of
from .descent import Descent, Groups, kernels
from .memory import prompts_at_a_time
from .passes import Route
from .precision import full_float32
from .trial import Plan, plan

_LOG = logging.getLogger("ntkprobe")
Selection = str | ParameterSelection
Side = tuple[nn.Module, Sequence[Probe]]
WHOLE = "all"


@dataclass(frozen=True)
class Gram:
    """Reverse mode only, for every architecture: the default.

    Attributes:
        batch_size: prompts in one forward and backward pass; `auto` fits them to the memory, and
            halves them where it runs out.
        dtype: what to compute in, a block at a time whatever the checkpoint is stored in. Default
            float32, or float64 for a model in float64. In bfloat16 a block of a Qwen2 drawn as
            transformers draws it is off by 1 % in the mean, 3 % at worst (widths 64 to 512); one
            drawn five to ten times as large by 6 and 14 % (`benchmarks/bfloat16.py`).
    """

    batch_size: int | Literal["auto"] = "auto"
    dtype: torch.dtype | None = None

    def __call__(
        self, model: nn.Module, probes: Sequence[Probe], parameters: Selection = "all"
    ) -> Blocks:
        """Return K, `[n, k, n, k]` in float64."""
        return self._sums(model, probes, parameters, _whole)[WHOLE]

    def by_part(
        self, model: nn.Module, probes: Sequence[Probe], parameters: Selection = "all"
    ) -> dict[Part, Blocks]:
        """Return K as a sum over the parts of the model, in its order, from the same one pass."""
        parts = part_of(model)
        lora = Part(None, "lora")
        return self._sums(model, probes, parameters, lambda name: [parts.get(name, lora)])

    def by_selection(
        self, model: nn.Module, probes: Sequence[Probe], selections: Sequence[Selection]
    ) -> dict[str, Blocks]:
        """Return K of each of several selections, as written, from one pass over all of them.

        A parameter counts in every selection that it is in, so that each is exactly what it is
        alone: `all` and `lora`, too, are kept beside each other and never mixed.
        """
        refuse(not selections, "no selections: give at least one, such as last:2+head")
        each = parse_selections(selections)
        theirs = {str(s): {id(p) for p in s.parameters(model).values()} for s in each}
        union = ParameterSelection(tuple(dict.fromkeys(term for s in each for term in s.terms)))
        named = union.parameters(model)

        def groups(name: str) -> list[str]:
            return [written for written, ids in theirs.items() if id(named[name]) in ids]

        found = self._sums(model, probes, union, groups)
        return {written: found[written] for written in theirs}

    def between(
        self,
        observed_model: nn.Module,
        observed: Sequence[Probe],
        updated_model: nn.Module,
        updated: Sequence[Probe],
        parameters: Selection = "all",
    ) -> Blocks:
        """Return J(x′; θ_t) J(x; θ_s)ᵀ, `[n, k, m, l]`: two checkpoints of one architecture.

        Args:
            observed_model: the model of the rows, at θ_t.
            observed: its prompts.
            updated_model: the model of the columns, at θ_s.
            updated: its prompts.
            parameters: the selection, the same of both.
        """
        sides = ((observed_model, observed), (updated_model, updated))
        return self._between(*sides, parameters=parameters)

    def coverage(
        self, model: nn.Module, probes: Sequence[Probe], parameters: Selection = "all"
    ) -> dict[str, str]:
        """Return how each parameter is handled: `matrix`, `table`, `vector`, or `autograd`.

        `autograd` is the fallback for a parameter that no rule holds for; `unused` says that no
        logit depends on it.
        """
        chosen = prepare(model, probes, parameters)
        with experts_one_by_one(model), full_float32():
            return self._plan(model, probes, chosen).handled

    def _plan(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        chosen: dict[str, nn.Parameter],
        others: Sequence[Probe] = (),
    ) -> Plan:
        """Return how the model is gone down, and say how its parameters are handled."""
        stored = {parameter.dtype for parameter in model.parameters()}
        dtype = self.dtype or (torch.float64 if torch.float64 in stored else torch.float32)
        tokens = [probe.tokens for probe in (*probes, *others)]
        read = [ids.cpu() for ids in tokens if ids is not None]
        columns = torch.cat(read).unique() if len(read) == len(tokens) else None
        found = plan(Route(model, _listed(model), dtype, columns), probes, chosen)
        counts = Counter(found.handled.values())
        told = ", ".join(f"{count} {how}" for how, count in counts.items())
        _LOG.info("%d parameters handled: %s", len(chosen), told)
        return found

    def _sums(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: Selection,
        groups: Groups,
    ) -> dict[Any, Blocks]:
        """Return K summed over each group of parameters."""
        chosen = prepare(model, probes, parameters)
        with experts_one_by_one(model), full_float32():
            plan = self._plan(model, probes, chosen)

            def computed(size: int) -> dict[Any, Blocks]:
                descent = Descent(plan, probes, chosen, size)
                return kernels(descent, descent, list(chosen), groups)

            return self._fitted(computed, prompts_at_a_time(plan.route, probes))

    def _between(self, *sides: Side, parameters: Selection) -> Blocks:
        """Return the kernel of two models."""
        chosen = [prepare(model, probes, parameters) for model, probes in sides]
        names = list(chosen[0])
        refuse(names != list(chosen[1]), "the two models have not the same parameters")
        with ExitStack() as stack:
            stack.enter_context(full_float32())
            for model, _ in sides:
                stack.enter_context(experts_one_by_one(model))
            every = [probe for _, probes in sides for probe in probes]
            plans = [self._plan(*side, own, every) for side, own in zip(sides, chosen, strict=True)]

            def computed(size: int) -> dict[Any, Blocks]:
                given = zip(plans, sides, chosen, strict=True)
                left, right = (Descent(p, side[1], own, size) for p, side, own in given)
                return kernels(left, right, names, _whole)

            return self._fitted(computed, prompts_at_a_time(plans[0].route, every))[WHOLE]

    def _fitted(self, computed: Callable[[int], Any], size: int) -> Any:
        """Return what is computed with as many prompts at a time as were set, or as fit.

        Raises:
            OutOfMemoryError: if one prompt alone does not fit.
        """
        if self.batch_size != "auto":
            return computed(self.batch_size)
        try:
            return computed(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        _LOG.warning("out of memory with %d prompts at a time: halving", size)
        return self._fitted(computed, size // 2)


def _whole(name: str) -> list[str]:
    """Return the one group that all parameters belong to."""
    return [WHOLE]


def _listed(model: nn.Module) -> nn.ModuleList | None:
    """Return the list of the model's blocks, `None` where it has none."""
    try:
        return decoder_list(model)
    except UserError:
        return None
