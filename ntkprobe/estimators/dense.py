"""The kernel by its definition: a backward pass per row of J, then J Jᵀ. The reference of tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from ..kernel import Blocks, Probe, last_logits, prepare
from ..models.gradients import gradients
from ..models.parameters import ParameterSelection, Part, part_of, requiring_grad
from ..models.validation import finite


@dataclass(frozen=True)
class Dense:
    """A backward pass per prompt and value, all gradients in memory: for small models and tests."""

    def __call__(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> Blocks:
        """Return K = J Jᵀ, `[n, k, n, k]` float64, summed over the parameters."""
        return sum_over(self.by_parameter(model, probes, parameters))

    def by_part(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> dict[Part, Blocks]:
        """Return each part's term of K, `[n, k, n, k]` float64; the terms sum to K."""
        parts = part_of(model)
        found: dict[Part, Blocks] = {}
        for name, blocks in self.by_parameter(model, probes, parameters).items():
            part = parts.get(name, Part(None, "lora"))
            found[part] = found[part] + blocks if part in found else blocks
        return found

    def by_parameter(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> dict[str, Blocks]:
        """Return every parameter's term of K, `[n, k, n, k]` float64, by name."""
        rows = jacobians(model, probes, parameters)
        return {name: torch.einsum("aip,bjp->aibj", j, j) for name, j in rows.items()}


def jacobians(
    model: nn.Module, probes: Sequence[Probe], parameters: str | ParameterSelection = "all"
) -> dict[str, Float64[Tensor, "n k _"]]:
    """Return ∂z_i(x_a)/∂θ for every parameter by name, flattened, in the model's order."""
    chosen = prepare(model, probes, parameters)
    tensors = list(chosen.values())
    rows: list[list[Tensor]] = []
    with requiring_grad(model, chosen), torch.enable_grad():
        for row, probe in enumerate(probes):
            values = probe.read(finite(last_logits(model, [probe.input_ids]), [row])[0])
            rows += [gradients(value, tensors, retain_graph=True) for value in values]
    shape = (len(probes), len(probes[0]), -1)
    return {
        name: torch.stack([row[p].double().flatten() for row in rows]).view(shape)
        for p, name in enumerate(chosen)
    }


def sum_over(blocks: dict[str, Blocks]) -> Blocks:
    """Return the sum of the terms of all parameters."""
    return torch.stack(list(blocks.values())).sum(0)
