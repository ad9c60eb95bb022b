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
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from ...errors import UserError
from ...kernel import Blocks, Probe, prepare
from ...models.architecture import decoder_list, experts_one_by_one
from ...models.parameters import ParameterSelection, Part, parse_selections, part_of
from ...models.validation import count, refuse
from .descent import Descent, Groups, kernels
from .memory import prompts_at_a_time, ran_out
from .passes import Route
from .precision import full_float32
from .remembered import RememberedTrials
from .trial import Plan, plan

_LOG = logging.getLogger("ntkprobe")
Selection = str | ParameterSelection
Side = tuple[nn.Module, Sequence[Probe]]
Planned = tuple[Plan, Sequence[Probe], dict[str, nn.Parameter]]
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
            drawn five to ten times as large by 6 and 14 %, deeper ones by more: what it is for is
            memory (`benchmarks/bfloat16.py`).
        allow_tf32: whether float32 matrices may be multiplied in less, as the process is set to.
        remembered: trials of the rules, of this estimator; each architecture is tried once.
    """

    batch_size: int | Literal["auto"] = "auto"
    dtype: torch.dtype | None = None
    allow_tf32: bool = False
    remembered: RememberedTrials = field(
        default_factory=RememberedTrials, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.batch_size != "auto":
            count("batch_size", self.batch_size)
        dtype = self.dtype
        floats = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        refuse(dtype is not None and not floats, f"dtype={dtype!r}: torch.float32, say, or None")

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
        with experts_one_by_one(model), self._precision():
            return self._plan(model, probes, chosen).handled

    def _precision(self) -> AbstractContextManager[None]:
        """Return the context in which matrices are multiplied."""
        return nullcontext() if self.allow_tf32 else full_float32()

    def _plan(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        chosen: dict[str, nn.Parameter],
        beside: Sequence[Side] = (),
    ) -> Plan:
        """Return how the model is gone down, and say how its parameters are handled.

        Args:
            model: the model.
            probes: its prompts.
            chosen: the parameters.
            beside: the models, and prompts, that its gradients are multiplied with, if others.
        """
        sides = [(model, probes), *beside]
        stored = {parameter.dtype for one, _ in sides for parameter in one.parameters()}
        dtype = self.dtype or (torch.float64 if torch.float64 in stored else torch.float32)
        tokens = [probe.tokens for _, some in sides for probe in some]
        read = [ids.cpu() for ids in tokens if ids is not None]
        columns = torch.cat(read).unique() if len(read) == len(tokens) else None
        route = Route(model, _listed(model), dtype, columns)
        found = self.remembered.find(route, chosen)
        if found is None:
            found = plan(route, probes, chosen)
            self.remembered.keep(found, route, chosen)
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
        with experts_one_by_one(model), self._precision():
            sides = [(self._plan(model, probes, chosen), probes, chosen)]
            return self._fitted(partial(_computed, sides, groups), sides)

    def _between(self, *sides: Side, parameters: Selection) -> Blocks:
        """Return the kernel of two models."""
        chosen = [prepare(model, probes, parameters) for model, probes in sides]
        names = list(chosen[0])
        refuse(names != list(chosen[1]), "the two models have not the same parameters")
        with ExitStack() as stack:
            stack.enter_context(self._precision())
            for model, _ in sides:
                stack.enter_context(experts_one_by_one(model))
            plans = [self._plan(*side, own, sides) for side, own in zip(sides, chosen, strict=True)]
            unruled = {name for p in plans for name in names if p.handled[name] == "autograd"}
            planned = [
                (plan.corrected(unruled), probes, own)
                for plan, (_, probes), own in zip(plans, sides, chosen, strict=True)
            ]
            return self._fitted(partial(_computed, planned, _whole), planned)[WHOLE]

    def _fitted(self, computed: Callable[[int], Any], sides: Sequence[Planned]) -> Any:
        """Return what is computed with as many prompts at a time as were set, or as fit.

        Raises:
            OutOfMemoryError: if one prompt alone does not fit, on a GPU or on a CPU.
            RuntimeError: what else went wrong, as it was.
            MemoryError: likewise.
        """
        if self.batch_size != "auto":
            return computed(self.batch_size)
        every = [probe for _, probes, _ in sides for probe in probes]
        size = prompts_at_a_time(sides[0][0].route, every)
        while True:
            try:
                return computed(size)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                if size == 1:
                    raise torch.OutOfMemoryError(str(error)) from error
            _LOG.warning("out of memory with %d prompts at a time: halving", size)
            size //= 2


def _computed(sides: Sequence[Planned], groups: Groups, size: int) -> dict[Any, Blocks]:
    """Return the sums over groups of parameters; again, where prompts show that a plan is wrong.

    The two prompts of the trial need not come to every expert, or branch, of a model.

    Args:
        sides: the model of the rows and that of the columns: one, if they are the same.
        groups: the groups of a parameter.
        size: prompts at a time.
    """
    descents = [Descent(*side, size) for side in sides]
    sums = kernels(descents[0], descents[-1], list(sides[0][2]), groups)
    unruled, late = (
        set().union(*found) for found in zip(*(d.missed() for d in descents), strict=True)
    )
    if not unruled | late:
        return sums
    _LOG.warning("computing again with %s handled otherwise", ", ".join(sorted(unruled | late)))
    better = [(plan.corrected(unruled, late), probes, own) for plan, probes, own in sides]
    return _computed(better, groups, size)


def _whole(name: str) -> list[str]:
    """Return the one group that all parameters belong to."""
    return [WHOLE]


def _listed(model: nn.Module) -> nn.ModuleList | None:
    """Return the list of the model's blocks, `None` where it has none."""
    try:
        return decoder_list(model)
    except UserError:
        return None
