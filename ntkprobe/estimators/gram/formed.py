"""The same descent with the gradients formed by autograd, prompt by prompt.

For parameters that are used in an operation without a rule, and for the trial that every rule is
put to.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ...models.parameters import requiring_grad
from .factors import Direct
from .passes import Factors, Pass, Reading, Route


class Alone(Pass):
    """The pass of one prompt, its parameters' gradients taken by autograd."""

    def run(self, stage: int) -> Factors:
        """Return the gradients of the watched parameters, where a stage uses them."""
        with requiring_grad(self._model, self._watched), torch.enable_grad(), self._at_hand(stage):
            gradients = self._gradients(*self._stage(stage), list(self._watched.values()))
        return {
            (name, None): [Direct(torch.stack([g.flatten() for g in gs])[None])]
            for name, gs in zip(self._watched, gradients, strict=True)
            if gs is not None
        }


class Formed:
    """A tile of prompts, each passed alone."""

    def __init__(
        self, route: Route, probes: Sequence[Reading], watched: dict[str, nn.Parameter]
    ) -> None:
        self.unruled: set[str] = set()
        self._each = [Alone(route, [probe], watched) for probe in probes]

    @property
    def stages(self) -> list[int]:
        """The stages from the top down."""
        return self._each[0].stages

    def run(self, stage: int) -> Factors:
        """Return the gradients of all prompts together."""
        found = [alone.run(stage) for alone in self._each]
        some = {key: factors[key][0] for factors in found for key in factors}
        return {
            key: [Direct(torch.cat([f[key][0].v if key in f else 0 * one.v for f in found]))]  # type: ignore[union-attr]
            for key, one in some.items()
        }

    def descend(self) -> None:
        """Take every prompt's cotangents a stage down."""
        for alone in self._each:
            alone.descend()
