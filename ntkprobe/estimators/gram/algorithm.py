"""The Gram estimator: the kernel as inner products of gradients that are never formed.

1. The model runs forward once; what enters each block is recorded.
2. From the last block to the first, one at a time, each block runs again, and the k values'
   gradients are taken at the outputs of every operation that uses a selected parameter (k backward
   passes in all).
3. Each operation's inputs and output gradients are the factors of its parameter's per-prompt
   gradients. Their inner products, in the cheapest order, are added to the kernel, and the factors
   are dropped.

Exact: K is a sum over parameters, and each summand is computed in full.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ...errors import UserError, count, require
from ...kernel import Blocks, Probe, prepare
from ...models.architecture import decoder_list, experts_one_by_one
from ...models.memory import halving
from ...models.parameters import ParameterSelection, Part, parse_selections, part_of
from ...models.precision import full_float32
from .backward import BackwardSchedule
from .microbatches import Groups, MicroBatches, kernel_sums, microbatch_size
from .rule_check import Plan, RememberedChecks, plan_backward
from .stage_state import StateFile

_LOG = logging.getLogger("ntkprobe")
Selection = str | ParameterSelection
ModelProbes = tuple[nn.Module, Sequence[Probe]]
Planned = tuple[Plan, Sequence[Probe], dict[str, nn.Parameter]]
_ALL = "all"


@dataclass(frozen=True)
class Gram:
    """Reverse mode only, for every architecture: the default.

    Attributes:
        batch_size: prompts in one forward and backward pass; `auto` chooses by the free memory, and
            halves the number where memory runs out.
        dtype: the dtype of the computation, one block at a time, whatever the checkpoint is stored
            in. Default float32, or float64 for a model in float64. In bfloat16 the kernel of a
            Qwen2 with the initial weights of transformers has a mean error of 1 % and at most 3 %
            (widths 64 to 512); with weights five to ten times as large 6 and 14 %, and more for
            deeper models. Its purpose is to save memory (`benchmarks/bfloat16.py`).
        allow_tf32: whether float32 matrices may be multiplied in lower precision, as the process is
            set to; otherwise in float32.
        state_file: a file for the state of the backward pass, written between two blocks every five
            minutes and removed at the end: the same call goes on there after it was stopped. Of one
            model only (not `between`); a state of another call is not used, and is replaced.
        remembered: checks of the rules by this estimator; each architecture is checked once.
    """

    batch_size: int | Literal["auto"] = "auto"
    dtype: torch.dtype | None = None
    allow_tf32: bool = False
    state_file: Path | None = field(default=None, repr=False, compare=False)
    remembered: RememberedChecks = field(
        default_factory=RememberedChecks, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if self.batch_size != "auto":
            count("batch_size", self.batch_size)
        dtype = self.dtype
        floats = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        require(dtype is None or floats, f"dtype={dtype!r}: torch.float32, say, or None")
        if self.state_file is not None:
            path = Path(self.state_file)
            require(not path.is_dir(), f"state_file={str(path)!r} is a folder: name a file in it")
            object.__setattr__(self, "state_file", path)

    def __call__(
        self, model: nn.Module, probes: Sequence[Probe], parameters: Selection = "all"
    ) -> Blocks:
        """Return K, `[n, k, n, k]` in float64."""
        return self._sums(model, probes, parameters, lambda name: [_ALL])[_ALL]

    def by_part(
        self, model: nn.Module, probes: Sequence[Probe], parameters: Selection = "all"
    ) -> Mapping[Part, Blocks]:
        """Return K as a sum over the model's parts, in its order, from one backward pass.

        Each is stored as its half, and made whole whenever it is taken.
        """
        parts = part_of(model)
        lora = Part(None, "lora")
        return self._sums(model, probes, parameters, lambda name: [parts.get(name, lora)])

    def by_selection(
        self, model: nn.Module, probes: Sequence[Probe], selections: Sequence[Selection]
    ) -> dict[str, Blocks]:
        """Return K of each of several selections, by its text, from one pass over all of them.

        A parameter counts in every selection that contains it, so that each kernel is the one that
        its selection alone gives: so are `all` and `lora` when both are selected.
        """
        require(selections, "no selections: give at least one, such as last:2+head")
        each = parse_selections(selections)
        theirs = {str(s): {id(p) for p in s.parameters(model).values()} for s in each}
        union = ParameterSelection(tuple(dict.fromkeys(term for s in each for term in s.terms)))
        named = union.parameters(model)

        def groups(name: str) -> list[str]:
            return [text for text, ids in theirs.items() if id(named[name]) in ids]

        sums = self._sums(model, probes, union, groups)
        return {text: sums[text] for text in theirs}

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
        sides = [(observed_model, observed), (updated_model, updated)]
        chosen = [prepare(model, probes, parameters) for model, probes in sides]
        names = list(chosen[0])
        shapes = [[(name, p.shape) for name, p in own.items()] for own in chosen]
        require(
            shapes[0] == shapes[1],
            "the two models have not the same parameters, by name and shape: give two checkpoints "
            "of one architecture, with the same vocabulary",
        )
        with ExitStack() as stack:
            stack.enter_context(self._precision())
            for model, _ in sides:
                stack.enter_context(experts_one_by_one(model))
            plans = [self._plan(*side, own, sides) for side, own in zip(sides, chosen, strict=True)]
            no_rule = {name for p in plans for name in names if p.handled[name] == "autograd"}
            planned = [
                (plan.with_fallbacks(no_rule), probes, own)
                for plan, (_, probes), own in zip(plans, sides, chosen, strict=True)
            ]
            return self._compute(planned, lambda name: [_ALL])[_ALL]

    def coverage(
        self, model: nn.Module, probes: Sequence[Probe], parameters: Selection = "all"
    ) -> dict[str, str]:
        """Return how each parameter is handled: `matrix`, `table`, `vector`, or `autograd`.

        `autograd` is the fallback for a parameter for which no rule holds; `unused` says that no
        logit depends on it.
        """
        chosen = prepare(model, probes, parameters)
        with experts_one_by_one(model), self._precision():
            return self._plan(model, probes, chosen, [(model, probes)]).handled

    def _sums(
        self, model: nn.Module, probes: Sequence[Probe], parameters: Selection, groups: Groups
    ) -> Mapping[Any, Blocks]:
        """Return the kernel of one model, summed over each group of parameters."""
        chosen = prepare(model, probes, parameters)
        with experts_one_by_one(model), self._precision():
            plan = self._plan(model, probes, chosen, [(model, probes)])
            sums = self._compute([(plan, probes, chosen)], groups)
        if self.state_file is not None:
            with suppress(OSError):  # of a folder that cannot be written: the kernel is done
                self.state_file.unlink(missing_ok=True)
        return sums

    def _precision(self) -> AbstractContextManager[None]:
        """Return the context that sets the precision of float32 matrix products."""
        return nullcontext() if self.allow_tf32 else full_float32()

    def _plan(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        chosen: dict[str, nn.Parameter],
        sides: Sequence[ModelProbes],
    ) -> Plan:
        """Return the plan of a model's backward pass, and log how its parameters are handled.

        Args:
            model: the model.
            probes: its prompts.
            chosen: its parameters.
            sides: all models of the kernel, this one included, and their prompts.
        """
        stored = {parameter.dtype for one, _ in sides for parameter in one.parameters()}
        dtype = self.dtype or (torch.float64 if torch.float64 in stored else torch.float32)
        tokens = [probe.tokens for _, some in sides for probe in some]
        read = [ids.cpu() for ids in tokens if ids is not None]
        columns = torch.cat(read).unique() if len(read) == len(tokens) else None
        schedule = BackwardSchedule(model, _block_list(model), dtype, columns)
        plan = self.remembered.find(schedule, chosen)
        if plan is None:
            plan = plan_backward(schedule, probes, chosen)
            self.remembered.add(plan, schedule, chosen)
        counts = Counter(plan.handled.values())
        summary = ", ".join(f"{count} {how}" for how, count in counts.items())
        _LOG.info("%d parameters handled: %s", len(chosen), summary)
        return plan

    def _compute(self, sides: Sequence[Planned], groups: Groups) -> Mapping[Any, Blocks]:
        """Return the sums, with as many prompts at a time as set or as fit into memory."""
        kept = None if self.state_file is None else (self.state_file, self.allow_tf32)
        compute = partial(_sums_with_fallbacks, sides, groups, kept=kept)
        if self.batch_size != "auto":
            return compute(self.batch_size)
        every = [probe for _, probes, _ in sides for probe in probes]
        size = microbatch_size(sides[0][0].schedule, every)
        return halving(compute, size)[0]


def _sums_with_fallbacks(
    sides: Sequence[Planned], groups: Groups, size: int, kept: tuple[Path, bool] | None = None
) -> Mapping[Any, Blocks]:
    """Return the sums over groups of parameters, computed again where a plan turns out wrong.

    The two prompts that a plan was made with need not reach every expert, or branch, of a model.

    Args:
        sides: the model of the rows and that of the columns: one, if they are the same.
        groups: returns the groups of a parameter.
        size: prompts at a time.
        kept: where the state is kept, and whether matrices may be multiplied in lower precision.
    """
    batches = [MicroBatches(*side, size) for side in sides]
    stored = _state_file(*kept, sides[0], groups) if kept else None
    sums = kernel_sums(batches[0], batches[-1], list(sides[0][2]), groups, stored)
    no_rule, used_later = (
        set().union(*found) for found in zip(*(b.fallbacks() for b in batches), strict=True)
    )
    if not no_rule | used_later:
        return sums
    _LOG.warning("computing again: other handling of %s", ", ".join(sorted(no_rule | used_later)))
    corrected = [
        (plan.with_fallbacks(no_rule, used_later), probes, own) for plan, probes, own in sides
    ]
    return _sums_with_fallbacks(corrected, groups, size, kept)


def _state_file(path: Path, tf32: bool, side: Planned, groups: Groups) -> StateFile:
    """Return the file of the states of one model's kernel, computed by one plan."""
    plan, probes, chosen = side
    schedule, by_name = plan.schedule, {name: groups(name) for name in chosen}
    how = plan.handled, plan.stages, schedule.blocks is None, schedule.dtype, tf32
    return StateFile(path, schedule.model, probes, by_name, *how)


def _block_list(model: nn.Module) -> nn.ModuleList | None:
    """Return the list of the model's decoder blocks, `None` where it has none."""
    try:
        return decoder_list(model)
    except UserError:
        return None
