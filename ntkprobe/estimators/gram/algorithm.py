"""The Gram estimator: all blocks from one forward and k backward passes, and no gradient kept."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...hooks import decoder_list
from ...kernel import Blocks, Probe, prepare
from ...parameters import Part, ParameterSelection, part_of
from .factors import Direct, merged
from .passes import Factors, Pass
from .products import product


class Formed:
    """A tile whose gradients autograd forms, prompt by prompt: for parameters without a rule."""

    def __init__(self, model, blocks, probes, watched):
        self.passes = [Pass(model, blocks, [p], watched, formed=True) for p in probes]

    @property
    def stages(self):
        return self.passes[0].stages

    def run(self, stage):
        each = [p.run(stage) for p in self.passes]
        return {key: [Direct(torch.cat([f[key][0].v for f in each], 1))] for key in each[0]}

    def descend(self):
        for p in self.passes:
            p.descend()


@dataclass(frozen=True)
class Gram:
    """Exact."""

    def __call__(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> Blocks:
        """Return K."""
        return sum(self.by(model, probes, parameters, lambda name: None).values())

    def by_part(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> dict[Part, Blocks]:
        parts = part_of(model)
        return self.by(model, probes, parameters, lambda name: parts.get(name, Part(None, "lora")))

    def by(self, model, probes, parameters, group):
        chosen = prepare(model, probes, parameters)
        blocks = decoder_list(model)
        found = {}
        p = Pass(model, blocks, probes, chosen)
        walk([p], group, found)
        missing = {n: chosen[n] for n in p.unruled}
        if missing:
            walk([Formed(model, blocks, probes, missing)], group, found)
        return found


def walk(tiles, group, found):
    stash: Factors = {}
    for stage in tiles[0].stages:
        for tile in tiles:
            for key, factors in tile.run(stage).items():
                stash.setdefault(key, []).extend(factors)
            tile.descend()
    for key, factors in stash.items():
        for p in merged(factors):
            for q in merged(factors):
                g = group(key[0])
                b = product(p, q)
                found[g] = found[g] + b if g in found else b
