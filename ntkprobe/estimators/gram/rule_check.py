"""Plans the backward pass, having checked every gradient rule against autograd on two prompts.

A parameter whose kernel by rules differs from its kernel by autograd, or which is used in an
operation without a rule, is differentiated by autograd for all prompts. So on no architecture is a
parameter silently left out or wrong.

`RememberedChecks` keeps the results for further models of the same architecture. Along a run the
same architecture comes with other weights at every checkpoint. A rule that was right there is right
for all of them, where the check showed anything: a parameter whose gradient was zero, such as a new
adapter's A while its B is zero, was not checked, and such a result is used again for the same
weights only.
"""

from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import ref

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...kernel import Probe, last_logits
from ...models.architecture import blocks_run_alone, hidden_state
from ...models.batching import padding_known, together
from ...models.parameters import requiring_grad
from ...models.replacement import replace_blocks
from .backward import BackwardSchedule, BlockwiseBackward, Factors, PerSampleGradients
from .factors import Factor, Lookup, Outer, sum_factors
from .inner_products import inner_product
from .module_settings import module_settings

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}
_NOISE = 1e-9  # of the norm of the whole kernel: smaller kernels are zero up to rounding

Slices = list[list[Factor]]
"""The factors of one parameter: for each of its slices, those of all uses."""


@dataclass(frozen=True)
class Plan:
    """How the backward pass of a model is divided, and how each parameter is handled.

    Attributes:
        schedule: the model and its stages.
        handled: by parameter, `matrix`, `table`, `vector`, `unused`, or `autograd` where no rule
            holds.
        stages: by parameter, the stages that use it, in the order of the backward pass.
        complete: whether the check showed every rule at work: no gradient was zero in it.
    """

    schedule: BackwardSchedule
    handled: dict[str, str]
    stages: dict[str, list[int]]
    complete: bool = False

    def with_fallbacks(
        self, no_rule: AbstractSet[str], used_later: AbstractSet[str] = frozenset()
    ) -> "Plan":
        """Return the plan with fallbacks for some parameters.

        Args:
            no_rule: parameters to differentiate by autograd.
            used_later: parameters to expect at every stage.
        """
        blocks = self.schedule.blocks
        every = [0] if blocks is None else list(range(len(blocks), -2, -1))
        return replace(
            self,
            handled=self.handled | dict.fromkeys(no_rule, "autograd"),
            stages=self.stages | {name: every for name in used_later},
        )


@dataclass(frozen=True)
class CombinedProbe:
    """A probe of which one value is read: a linear combination of its k values."""

    probe: Probe
    weights: Float[Tensor, " k"]

    @property
    def input_ids(self) -> Tensor:
        """The prompt's token ids."""
        return self.probe.input_ids

    def read(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " one"]:
        """Return the combination."""
        return (self.probe.read(logits) @ self.weights.to(logits))[None]


def plan_backward(
    schedule: BackwardSchedule, probes: Sequence[Probe], watched: dict[str, nn.Parameter]
) -> Plan:
    """Return the plan that is correct for two of the shortest prompts.

    Args:
        schedule: the model, and its blocks if it has a list of them.
        probes: all prompts.
        watched: the parameters by name.
    """
    few = _shortest_two(schedule.model, probes)
    if not is_blockwise(schedule, [p.input_ids for p in few]):
        schedule = replace(schedule, blocks=None)
    by_rule = BlockwiseBackward(schedule, few, watched)
    by_autograd = PerSampleGradients(schedule, few, watched)
    check = _RuleCheck(_tied_names(schedule.model, watched))
    for stage in by_rule.stages:
        check.add_stage(stage, _by_name(by_rule.run(stage)), _by_name(by_autograd.run(stage)))
        by_rule.advance()
        by_autograd.advance()
    handled = check.handling(list(watched), _TOLERANCE[schedule.dtype])
    unseen = watched.keys() - check.stages.keys()  # of experts that the two prompts do not reach
    stages = {name: check.stages.get(name, []) for name in watched}
    plan = Plan(schedule, handled, stages, check.is_complete(list(watched)))
    return plan.with_fallbacks(by_rule.no_rule, unseen)


def _shortest_two(model: nn.Module, probes: Sequence[Probe]) -> list[CombinedProbe]:
    """Return two of the shortest prompts, of three tokens or more if possible.

    Where the two may not share a batch, the first one twice; once, if no batch is exact.
    """
    generator = torch.Generator().manual_seed(0)
    by_length = sorted(probes, key=lambda p: (len(p.input_ids) < 3, len(p.input_ids)))
    two = by_length[:2]
    if len(together(model, [probe.input_ids for probe in two])) > 1:
        two = two[:1] if padding_known(model, "right") is False else two[:1] * 2
    return [CombinedProbe(p, torch.randn(len(p), generator=generator)) for p in two]


class _RuleCheck:
    """The kernels of each parameter by rule and by autograd, accumulated stage by stage."""

    def __init__(self, tied: set[str]) -> None:
        self.stages: dict[str, list[int]] = {}
        self._kinds: dict[str, str] = {}
        self._kernels: dict[str, tuple[Tensor, Tensor]] = {}
        self._tied: dict[str, tuple[Slices, Slices]] = {name: ([], []) for name in tied}

    def add_stage(
        self, stage: int, by_rule: dict[str, Slices], by_autograd: dict[str, Slices]
    ) -> None:
        """Add the factors of one stage; those of tied parameters are multiplied at the end."""
        for name in by_rule.keys() | by_autograd.keys():
            ruled, formed = by_rule.get(name, []), by_autograd.get(name, [])
            self.stages.setdefault(name, []).append(stage)
            for factor in (f for uses in ruled for f in uses):
                self._kinds[name] = _kind(factor)
            if name in self._tied:
                self._tied[name][0].extend(ruled)
                self._tied[name][1].extend(formed)
            else:
                self._add_kernels(name, ruled, formed)

    def handling(self, names: list[str], tolerance: float) -> dict[str, str]:
        """Return how each parameter is to be handled."""
        for name, pair in self._tied.items():
            self._add_kernels(name, *([[f for uses in side for f in uses]] for side in pair))
        whole = sum(float(formed.norm()) for _, formed in self._kernels.values())
        handled = {name: self._kinds.get(name, "unused") for name in names}
        for name, (ruled, formed) in self._kernels.items():
            allowed = tolerance * float(formed.norm()) + _NOISE * whole
            if not float((ruled - formed).norm()) <= allowed:
                handled[name] = "autograd"
        return handled

    def is_complete(self, names: list[str]) -> bool:
        """Return whether no parameter's kernel is zero, so that every rule was checked."""
        sizes = {name: float(formed.norm()) for name, (_, formed) in self._kernels.items()}
        whole = sum(sizes.values())
        # Well above what `handling` allows as noise, where a wrong rule would pass.
        return all(sizes.get(name, 0.0) > 100 * _NOISE * whole for name in names)

    def _add_kernels(self, name: str, ruled: Slices, formed: Slices) -> None:
        pair = [_kernel(ruled), _kernel(formed)]
        before = self._kernels.get(name, (torch.zeros(()), torch.zeros(())))
        self._kernels[name] = (before[0] + pair[0], before[1] + pair[1])


def _by_name(factors: Factors) -> dict[str, Slices]:
    found: dict[str, Slices] = {}
    for (name, _), uses in factors.items():
        found.setdefault(name, []).append(uses)
    return found


def _kernel(slices: Slices) -> Tensor:
    """Return the kernel of one parameter, as the sum over its slices."""
    found = torch.zeros((), dtype=torch.float64)
    for uses in slices:
        whole = sum_factors(uses)
        for p in whole:
            for q in whole:
                found = found + inner_product(p, q).cpu()
    return found


def _kind(factor: Factor) -> str:
    """Return the word for a kind of factor in `Plan.handled`."""
    return {Outer: "matrix", Lookup: "table"}.get(type(factor), "vector")


def _tied_names(model: nn.Module, watched: dict[str, nn.Parameter]) -> set[str]:
    holders: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return {name for name, parameter in watched.items() if holders.get(id(parameter), 0) > 1}


def is_blockwise(schedule: BackwardSchedule, prompts: Sequence[Tensor]) -> bool:
    """Return whether blocks exchange gradients through the residual stream only.

    Then each block can be run and differentiated alone.
    """
    if schedule.blocks is None or not blocks_run_alone(schedule.model):
        return False
    originals = list(schedule.blocks)
    last_output: list[Tensor] = []
    separate: list[bool] = []

    def run_block(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden, *rest = args or (kwargs["hidden_states"],)
        others = [x for x in tree_leaves((rest, kwargs)) if isinstance(x, Tensor)]
        apart = not any(x.requires_grad for x in others if x is not hidden)
        separate.append(apart and all(torch.equal(x, hidden) for x in last_output))
        output = block(*args, **kwargs)
        last_output[:] = [hidden_state(output)]
        return output

    every = dict(schedule.model.named_parameters())
    with (
        requiring_grad(schedule.model, every),
        torch.enable_grad(),
        replace_blocks(schedule.blocks, lambda index: partial(run_block, originals[index])),
    ):
        last_logits(schedule.model, prompts)
    return len(separate) == len(originals) and all(separate)


@dataclass
class RememberedChecks:
    """Plans by architecture, selection and precision; of one estimator, for as long as it lives."""

    _plans: dict[Hashable, Plan] = field(default_factory=dict)
    _weights: dict[Hashable, Hashable] = field(default_factory=dict)

    def find(self, schedule: BackwardSchedule, watched: dict[str, nn.Parameter]) -> Plan | None:
        """Return the plan of an earlier check, for this model; None if there was none.

        Args:
            schedule: the model, and what of it is read.
            watched: the parameters by name.
        """
        key = _key(schedule, watched)
        plan = self._plans.get(key)
        if plan is None or not (plan.complete or self._weights[key] == _version(schedule.model)):
            return None
        blocks = schedule.blocks if plan.schedule.blocks is not None else None
        own = replace(schedule, blocks=blocks)
        return Plan(own, dict(plan.handled), dict(plan.stages), plan.complete)

    def add(self, plan: Plan, schedule: BackwardSchedule, watched: dict[str, nn.Parameter]) -> None:
        """Remember the plan of a check, and nothing of the model itself.

        Args:
            plan: what the check gave.
            schedule: what it was asked for.
            watched: the parameters by name.
        """
        key = _key(schedule, watched)
        blocks = None if plan.schedule.blocks is None else nn.ModuleList()
        empty = replace(plan.schedule, model=nn.Identity(), blocks=blocks, columns=None)
        self._plans[key] = Plan(empty, dict(plan.handled), dict(plan.stages), plan.complete)
        self._weights[key] = _version(schedule.model)


def _key(schedule: BackwardSchedule, watched: dict[str, nn.Parameter]) -> Hashable:
    """Return all that the rules, or what they are for, may depend on, but the weights."""
    model = schedule.model
    modules = tuple((name, *module_settings(module)) for name, module in model.named_modules())
    chosen = {id(p) for p in watched.values()}
    parameters = tuple(
        (name, tuple(p.shape), p.dtype, id(p) in chosen)
        for name, p in model.named_parameters(remove_duplicate=False)
    )
    first: dict[int, str] = {}
    tied = tuple(
        first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)
    )
    config: Any = getattr(model, "config", None)
    settings = (
        (config.to_json_string(), getattr(config, "_attn_implementation", None)) if config else ()
    )
    reads_all = schedule.columns is None
    return (settings, modules, parameters, tied, tuple(watched), schedule.dtype, reads_all)


def _version(model: nn.Module) -> Hashable:
    """Return what changes when another model comes, or a weight is written in place."""
    return ref(model), tuple(parameter._version for parameter in model.parameters())
