"""Results of the rule check, remembered for further models of the same architecture.

Along a run the same architecture comes with other weights at every checkpoint. A rule that was
right there is right for all of them, where the check showed anything: a parameter whose gradient
was zero, such as a new adapter's A while its B is zero, was not checked, and such a result is used
again for the same weights only.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ref

from torch import nn

from .backward import BackwardSchedule
from .rule_check import Plan

_PLAIN = (bool, int, float, str, type(None))


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
    modules = tuple((name, *_described(module)) for name, module in model.named_modules())
    parameters = tuple(
        (name, tuple(p.shape), p.dtype, id(p) in {id(each) for each in watched.values()})
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


def _described(module: nn.Module) -> tuple[Hashable, ...]:
    """Return what a module is, with its settings and the hooks that are on it."""
    plain: tuple[Hashable, ...] = tuple(
        sorted((k, repr(v)) for k, v in vars(module).items() if _is_plain(v))
    )
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    names: tuple[Hashable, ...] = tuple(
        getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks
    )
    kind: Any = type(module)
    return kind, "forward" in vars(module), plain, names


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        parts = value.values() if isinstance(value, dict) else value
        return all(isinstance(each, _PLAIN) for each in parts)
    return isinstance(value, _PLAIN)


def _version(model: nn.Module) -> Hashable:
    """Return what changes when another model comes, or a weight is written in place."""
    return ref(model), tuple(parameter._version for parameter in model.parameters())
