"""What the trial of the rules found, kept for further models of the same architecture.

Along a run the same model comes again and again with other weights. A rule that was right there is
right for all of them, where the trial showed anything: a parameter whose gradient was zero, such as
a new adapter's A while its B is zero, was not tried, and what was found then holds for these very
weights alone.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

from torch import nn

from .passes import Route
from .trial import Plan

_PLAIN = (bool, int, float, str, type(None))


@dataclass
class RememberedTrials:
    """Plans by architecture, selection and precision; of one estimator, for as long as it lives."""

    _plans: dict[Hashable, Plan] = field(default_factory=dict)
    _weights: dict[Hashable, Hashable] = field(default_factory=dict)

    def find(self, route: Route, watched: dict[str, nn.Parameter]) -> Plan | None:
        """Return the plan that an earlier trial found, for this model; None if there was none.

        Args:
            route: the model, and what of it is read.
            watched: the parameters.
        """
        key = _key(route, watched)
        found = self._plans.get(key)
        if found is None or not (found.shown or self._weights[key] == _version(route.model)):
            return None
        streamed = found.route.blocks is not None
        own = Route(route.model, route.blocks if streamed else None, route.dtype, route.columns)
        return Plan(own, dict(found.handled), dict(found.stages), found.shown)

    def keep(self, found: Plan, route: Route, watched: dict[str, nn.Parameter]) -> None:
        """Keep what a trial found."""
        key = _key(route, watched)
        # Of the model itself nothing is kept.
        blocks = None if found.route.blocks is None else nn.ModuleList()
        nothing = Route(nn.Identity(), blocks, route.dtype, None)
        self._plans[key] = Plan(nothing, dict(found.handled), dict(found.stages), found.shown)
        self._weights[key] = _version(route.model)


def _key(route: Route, watched: dict[str, nn.Parameter]) -> Hashable:
    """Return all that the rules, or what they are for, may depend on, but the weights."""
    model = route.model
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
    told = (
        (config.to_json_string(), getattr(config, "_attn_implementation", None)) if config else ()
    )
    reads_all = route.columns is None
    return (told, modules, parameters, tied, tuple(watched), route.dtype, reads_all)


def _described(module: nn.Module) -> tuple[Any, ...]:
    """Return what a module is, with its settings and the hooks that are on it."""
    plain = tuple(sorted((k, repr(v)) for k, v in vars(module).items() if _is_plain(v)))
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    named = tuple(getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks)
    return type(module), "forward" in vars(module), plain, named


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        parts = value.values() if isinstance(value, dict) else value
        return all(isinstance(each, _PLAIN) for each in parts)
    return isinstance(value, _PLAIN)


def _version(model: nn.Module) -> Hashable:
    """Return what changes when another model comes, or a weight is written in place."""
    return ref(model), tuple(parameter._version for parameter in model.parameters())
