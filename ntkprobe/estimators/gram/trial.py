"""Two short prompts through the rules and through autograd: the test that every rule must pass.

A parameter whose two kernels disagree, or that goes into an operation without a rule, is left to
autograd for all prompts. So none is left out, or wrong, unseen: on no architecture.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...kernel import Probe, last_logits
from ...models.architecture import blocks_run_alone, hidden_state
from ...models.batching import padding_known, together
from ...models.parameters import requiring_grad
from .factors import Factor, Lookup, Outer, summed
from .formed import Formed
from .passes import Factors, Pass, Route
from .products import product
from .standing import standing_in

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}
_NOISE = 1e-9  # of the whole kernel: below it, a gradient is zero but for rounding

ByName = dict[str, list[list[Factor]]]


@dataclass(frozen=True)
class Plan:
    """How a model is gone down, and each of its parameters handled.

    Attributes:
        route: the model and its stages.
        handled: by parameter, `matrix`, `table`, `vector`, or `autograd` where no rule holds.
        stages: by parameter, the stages that use it, from the top down.
        shown: whether the trial showed every rule at work: no gradient was zero in it.
    """

    route: Route
    handled: dict[str, str]
    stages: dict[str, list[int]]
    shown: bool = False

    def corrected(self, unruled: AbstractSet[str], late: AbstractSet[str] = frozenset()) -> "Plan":
        """Return the plan with some parameters left to autograd, and some looked for everywhere."""
        handled = self.handled | dict.fromkeys(unruled, "autograd")
        return replace(self, handled=handled, stages=self.stages | _everywhere(self.route, late))


@dataclass(frozen=True)
class Mixture:
    """A prompt read as one value, a mixture of those of its probe."""

    probe: Probe
    weights: Float[Tensor, " k"]

    @property
    def input_ids(self) -> Tensor:
        """The prompt."""
        return self.probe.input_ids

    def read(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " one"]:
        """Return the mixture."""
        return (self.probe.read(logits) @ self.weights.to(logits))[None]


def plan(route: Route, probes: Sequence[Probe], watched: dict[str, nn.Parameter]) -> Plan:
    """Return the plan that two of the shortest prompts show to be right."""
    generator = torch.Generator().manual_seed(0)
    by_length = sorted(probes, key=lambda p: (len(p.input_ids) < 3, len(p.input_ids)))
    two = by_length[:2]
    if len(together(route.model, [probe.input_ids for probe in two])) > 1:
        # They may not share a pass: one of them, read twice, if any batch may.
        two = two[:1] if padding_known(route.model, "right") is False else two[:1] * 2
    few = [Mixture(p, torch.randn(len(p), generator=generator)) for p in two]
    if not streamable(route, [p.input_ids for p in few]):
        route = replace(route, blocks=None)
    ruled, formed = Pass(route, few, watched), Formed(route, few, watched)
    trial = _Trial(_shared(route.model, watched))
    for stage in ruled.stages:
        trial.enter(stage, _by_name(ruled.run(stage)), _by_name(formed.run(stage)))
        ruled.descend()
        formed.descend()
    handled = trial.judged(list(watched), _TOLERANCE[route.dtype])
    unseen = watched.keys() - trial.stages.keys()  # an expert that the two prompts do not come to
    stages = {name: trial.stages.get(name, []) for name in watched}
    found = Plan(route, handled, stages, trial.shown(list(watched)))
    return found.corrected(ruled.unruled, unseen)


def _everywhere(route: Route, names: AbstractSet[str]) -> dict[str, list[int]]:
    """Return all stages, from the top down, for each of the parameters."""
    depth = len(route.blocks) if route.blocks is not None else None
    return {name: [0] if depth is None else list(range(depth, -2, -1)) for name in names}


class _Trial:
    """The kernels of each parameter by rule and by autograd, gathered stage by stage."""

    def __init__(self, shared: set[str]) -> None:
        self.stages: dict[str, list[int]] = {}
        self._kinds: dict[str, str] = {}
        self._kernels: dict[str, tuple[Tensor, Tensor]] = {}
        self._kept: dict[str, tuple[list[list[Factor]], list[list[Factor]]]] = {
            name: ([], []) for name in shared
        }

    def enter(self, stage: int, by_rule: ByName, by_autograd: ByName) -> None:
        """Enter what one stage gives; a tied parameter's is kept, to be multiplied at the end."""
        for name in by_rule.keys() | by_autograd.keys():
            ruled, formed = by_rule.get(name, []), by_autograd.get(name, [])
            self.stages.setdefault(name, []).append(stage)
            for factor in (f for uses in ruled for f in uses):
                self._kinds[name] = _kind(factor)
            if name in self._kept:
                self._kept[name][0].extend(ruled)
                self._kept[name][1].extend(formed)
            else:
                self._multiply(name, ruled, formed)

    def judged(self, names: list[str], tolerance: float) -> dict[str, str]:
        """Return how each parameter is to be handled."""
        for name, pair in self._kept.items():
            self._multiply(name, *([[f for uses in side for f in uses]] for side in pair))
        whole = sum(float(formed.norm()) for _, formed in self._kernels.values())
        handled = {name: self._kinds.get(name, "unused") for name in names}
        for name, (ruled, formed) in self._kernels.items():
            allowed = tolerance * float(formed.norm()) + _NOISE * whole
            if not float((ruled - formed).norm()) <= allowed:
                handled[name] = "autograd"
        return handled

    def shown(self, names: list[str]) -> bool:
        """Return whether every parameter has a kernel, so that its rule was tried."""
        sizes = {name: float(formed.norm()) for name, (_, formed) in self._kernels.items()}
        whole = sum(sizes.values())
        return all(sizes.get(name, 0.0) > _NOISE * whole for name in names)

    def _multiply(self, name: str, ruled: list[list[Factor]], formed: list[list[Factor]]) -> None:
        """Add a parameter's two kernels to those that it has."""
        pair = [_kernel(ruled), _kernel(formed)]
        before = self._kernels.get(name, (torch.zeros(()), torch.zeros(())))
        self._kernels[name] = (before[0] + pair[0], before[1] + pair[1])


def _by_name(factors: Factors) -> ByName:
    """Return the factors of each parameter, slice by slice."""
    found: ByName = {}
    for (name, _), uses in factors.items():
        found.setdefault(name, []).append(uses)
    return found


def _kernel(slices: list[list[Factor]]) -> Tensor:
    """Return the kernel of one parameter, slice by slice."""
    found = torch.zeros((), dtype=torch.float64)
    for uses in slices:
        whole = summed(uses)
        for p in whole:
            for q in whole:
                found = found + product(p, q).cpu()
    return found


def _kind(factor: Factor) -> str:
    """Return what a kind of factor is called in the account of coverage."""
    return {Outer: "matrix", Lookup: "table"}.get(type(factor), "vector")


def _shared(model: nn.Module, watched: dict[str, nn.Parameter]) -> set[str]:
    """Return the parameters that several modules hold: tied ones."""
    holders: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return {name for name, parameter in watched.items() if holders.get(id(parameter), 0) > 1}


def streamable(route: Route, prompts: Sequence[Tensor]) -> bool:
    """Return whether the blocks are joined by the residual stream alone, and may be run apart."""
    if route.blocks is None or not blocks_run_alone(route.model):
        return False
    originals = list(route.blocks)
    leaving: list[Tensor] = []
    joined: list[bool] = []

    def watched(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden, *rest = args or (kwargs["hidden_states"],)
        others = [x for x in tree_leaves((rest, kwargs)) if isinstance(x, Tensor)]
        apart = not any(x.requires_grad for x in others if x is not hidden)
        joined.append(apart and all(torch.equal(x, hidden) for x in leaving[-1:]))
        output = block(*args, **kwargs)
        leaving.append(hidden_state(output))
        return output

    every = dict(route.model.named_parameters())
    with (
        requiring_grad(route.model, every),
        torch.enable_grad(),
        standing_in(route.blocks, lambda index: partial(watched, originals[index])),
    ):
        last_logits(route.model, prompts)
    return len(joined) == len(originals) and all(joined)
