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
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ...checks import refuse
from ...errors import UserError
from ...hooks import decoder_list, experts_one_by_one
from ...kernel import Blocks, Probe, prepare
from ...parameters import ParameterSelection, Part, part_of
from .descent import Descent, kernels
from .memory import prompts_at_a_time
from .passes import Route
from .precision import full_float32
from .trial import Plan, plan

_LOG = logging.getLogger("ntkprobe")
Selection = str | ParameterSelection


@dataclass(frozen=True)
class Gram:
    """Reverse mode only, for every architecture: the default.

    Attributes:
        batch_size: prompts in one forward and backward pass; `auto` fits them to the memory, and
            halves them where it runs out.
        dtype: what to compute in, a block at a time whatever the checkpoint is stored in. Default
            float32, or float64 for a model in float64. In bfloat16 a block is off by 1 to 3 %.
    """

    batch_size: int | Literal["auto"] = "auto"
    dtype: torch.dtype | None = None

    def __call__(
        self, model: nn.Module, probes: Sequence[Probe], parameters: Selection = "all"
    ) -> Blocks:
        """Return K, `[n, k, n, k]` in float64."""
        return self._sums(model, probes, parameters, lambda name: "all")["all"]

    def by_part(
        self, model: nn.Module, probes: Sequence[Probe], parameters: Selection = "all"
    ) -> dict[Part, Blocks]:
        """Return K as a sum over the parts of the model, in its order, from the same one pass."""
        parts = part_of(model)
        return self._sums(model, probes, parameters, lambda n: parts.get(n, Part(None, "lora")))

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
        models, probes = (observed_model, updated_model), (observed, updated)
        return self._between(models, probes, parameters)

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
        self, model: nn.Module, probes: Sequence[Probe], chosen: dict[str, nn.Parameter]
    ) -> Plan:
        """Return how the model is gone down, and say how its parameters are handled."""
        stored = {parameter.dtype for parameter in model.parameters()}
        dtype = self.dtype or (torch.float64 if torch.float64 in stored else torch.float32)
        tokens = [p.tokens for p in probes if p.tokens is not None]
        columns = torch.cat(tokens).unique() if len(tokens) == len(probes) else None
        found = plan(Route(model, listed(model), dtype, columns), probes, chosen)
        counts = Counter(found.handled.values())
        _LOG.info(
            "%d parameters: %s", len(chosen), ", ".join(f"{c} {k}" for k, c in counts.items())
        )
        return found

    def _sums(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: Selection,
        group: Callable[[str], Hashable],
    ) -> dict[Any, Blocks]:
        """Return K as a sum over groups of parameters."""
        chosen = prepare(model, probes, parameters)
        with experts_one_by_one(model), full_float32():
            plan = self._plan(model, probes, chosen)
            for size in self._sizes(plan, probes):
                try:
                    descent = Descent(plan, probes, chosen, size)
                    return kernels(descent, descent, list(chosen), group)
                except torch.OutOfMemoryError:
                    if size == 1 or self.batch_size != "auto":
                        raise
                    _LOG.warning("out of memory with %d prompts at a time: halving", size)
        raise AssertionError("unreachable")

    def _between(self, models, probes, parameters):
        """Return the kernel between two models."""
        chosen = [prepare(*pair, parameters) for pair in zip(models, probes, strict=True)]
        refuse(list(chosen[0]) != list(chosen[1]), "the two models have other parameters")
        with ExitStack() as stack:
            stack.enter_context(full_float32())
            for model in models:
                stack.enter_context(experts_one_by_one(model))
            descents = []
            for model, some, names in zip(models, probes, chosen, strict=True):
                found = self._plan(model, some, names)
                descents.append(Descent(found, some, names, next(self._sizes(found, some))))
            return kernels(*descents, list(chosen[0]), lambda name: "all")["all"]

    def _sizes(self, plan: Plan, probes: Sequence[Probe]) -> Iterator[int]:
        """Yield the numbers of prompts to try to pass at once."""
        if self.batch_size != "auto":
            yield self.batch_size
            return
        size = prompts_at_a_time(plan.route.blocks, plan.route.model, probes)
        while size:
            yield size
            size //= 2


def listed(model: nn.Module) -> nn.ModuleList | None:
    """Return the list of the model's blocks, `None` where it has none."""
    try:
        return decoder_list(model)
    except UserError:
        return None
