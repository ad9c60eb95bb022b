"""The paper's approximation (A.6): central differences along w, the gradient by backpropagation.

| A.6                                                     | here                      |
|---------------------------------------------------------|---------------------------|
| step 1: w = ∇_θ z_i(x), by backpropagation              | `gradient`                |
| step 2: J(x′) w ≈ (z(x′; θ + εw) − z(x′; θ − εw)) / 2ε  | `_directional_derivative` |
| step 3: restrict to the observed tokens S_o             | `Probe.read`              |
"""

import math
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from ..errors import count, require
from ..kernel import Blocks, Probe, last_logits, prepare
from ..models.gradients import gradients
from ..models.padding_row import constant_padding_row
from ..models.parameters import ParameterSelection, requiring_grad
from ..models.validation import finite


@dataclass(frozen=True)
class FiniteDifference:
    """One column of K at a time, by a central difference over all observed prompts in one batch.

    Its error depends on the step. Blocks of random Qwen2 models, the worst and the median, against
    the definition in float64 (`benchmarks/finite_difference.md`):

    | d, layers | ‖w‖   | dtype    | raw, ε = 10⁻³ | unit, ε = 10⁻³ | exact gradients |
    |-----------|-------|----------|---------------|----------------|-----------------|
    | 128, 4    | 23–38 | float32  | 22 %, 0.3 %   | 0.09 %, 0.03 % | 0.0001 %        |
    | 512, 8    | 70–98 | float32  | 56 %, 0.5 %   | 0.3 %, 0.1 %   | 0.0002 %        |
    | 512, 8    | 70–98 | bfloat16 | 59 %, 27 %    | noise          | 2 %             |

    The worst are a prompt's blocks with itself, by which every similarity is divided: at d = 512,
    raw similarities have a median error of 99 %. In bfloat16, which is refused, no step is
    accurate. A mixture of experts is discontinuous: a step may route a token to another expert.

    Attributes:
        eps: ε, the paper's 10⁻³ by default.
        step: `raw` changes θ by ε·w, as printed; `unit` by ε·w/‖w‖, independent of the gradient's
            norm.
        batch_size: number of observed prompts in one forward pass.
        tolerance: warn where ε and ε/2 differ by more than this (`disagreement`); with infinity
            they are not compared, which saves half of two small prompts' time.
    """

    rtol: ClassVar[float] = 0.05  # the error above which `verify` raises

    eps: float = 1e-3
    step: str = "raw"
    batch_size: int = 128
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        long = isinstance(self.eps, float | int) and 0 < self.eps < math.inf
        require(long, f"eps={self.eps!r}: choose a step above 0, such as 1e-3")
        count("batch_size", self.batch_size)
        known = self.step in ("raw", "unit")
        require(known, f"step={self.step!r}: choose 'raw' (ε·w) or 'unit' (ε·w/‖w‖)")

    def __call__(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> Blocks:
        """Return K, and warn where ε and ε/2 disagree by more than `tolerance`."""
        asked = self.tolerance != math.inf
        disagreement = self.disagreement(model, probes, parameters) if asked else 0.0
        if not disagreement <= self.tolerance:
            warnings.warn(
                f"finite differences with {self.step} steps ε = {self.eps:g} and ε/2 differ by "
                f"{disagreement:.0%}: try step='unit', or the gram estimator, which has no step",
                stacklevel=2,
            )
        columns = torch.stack(list(self.columns(model, probes, parameters)), -1)
        return columns.unflatten(-1, (len(probes), len(probes[0])))

    def columns(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
        which: Iterable[int] | None = None,
    ) -> Iterator[Float64[Tensor, "n k"]]:
        """Yield `which` columns of K, or all: column c is value c % k of updated prompt c // k."""
        chosen, k = prepare(model, probes, parameters), len(probes[0])
        _refuse_half_precision(chosen)
        for c in range(len(probes) * k) if which is None else which:
            w = gradient(model, probes[c // k], c % k, chosen)
            yield self._directional_derivative(w, model, probes, chosen)

    def disagreement(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> float:
        """Return the worst relative difference of ε and ε/2, over eight columns' observed prompts.

        Too long a step affects first the blocks of a prompt with itself, whose own gradient changes
        its logits most; too short a step, by rounding, the smallest blocks.
        """
        prepare(model, probes, parameters)
        size = len(probes) * len(probes[0])
        eighths = sorted({round(e * (size - 1) / 7) for e in range(8)})
        whole = self.columns(model, probes, parameters, eighths)
        half = replace(self, eps=self.eps / 2).columns(model, probes, parameters, eighths)
        return max(
            float(((a - b).norm(dim=1) / b.norm(dim=1)).nan_to_num().max())
            for a, b in zip(whole, half, strict=True)
        )

    def _directional_derivative(
        self,
        w: list[Tensor],
        model: nn.Module,
        observed: Sequence[Probe],
        chosen: dict[str, nn.Parameter],
    ) -> Float64[Tensor, "n k"]:
        """Return J(x′) w for every observed prompt (A.6, steps 2 and 3)."""
        step = self.eps / _norm(w) if self.step == "unit" else self.eps
        with constant_padding_row(model):
            with shifted(chosen.values(), w, step):
                ahead = self._read(model, observed)
            with shifted(chosen.values(), w, -step):
                behind = self._read(model, observed)
        return (ahead - behind) / (2 * step)

    def _read(self, model: nn.Module, observed: Sequence[Probe]) -> Float64[Tensor, "n k"]:
        """Return the probes' values at the current parameters."""
        rows: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(observed), self.batch_size):
                batch = observed[start : start + self.batch_size]
                numbers = range(start, start + len(batch))
                logits = finite(last_logits(model, [p.input_ids for p in batch]), numbers).double()
                rows += [probe.read(z) for probe, z in zip(batch, logits, strict=True)]
        return torch.stack(rows).cpu()


def gradient(
    model: nn.Module, updated: Probe, i: int, chosen: dict[str, nn.Parameter]
) -> list[Tensor]:
    """Return w = ∇_θ z_i(x) (A.6, step 1).

    Args:
        model: the model.
        updated: x and the values that are read of it.
        i: which of its k values, from 0.
        chosen: θ by name.

    Returns:
        For every chosen parameter a tensor of its shape and dtype. Logits that are NaN or infinite
        are a `UserError`.
    """
    with requiring_grad(model, chosen), torch.enable_grad():
        value = updated.read(finite(last_logits(model, [updated.input_ids]))[0])[i]
        return gradients(value, chosen.values())


@contextmanager
def shifted(
    parameters: Iterable[nn.Parameter], direction: Sequence[Tensor], step: float
) -> Generator[None]:
    """Set the parameters to θ + step·direction inside the `with` block, and then to θ exactly.

    θ is restored from a copy: subtracting the step would accumulate rounding errors.
    """
    tensors = [parameter.detach() for parameter in parameters]
    saved = [tensor.clone() for tensor in tensors]
    try:
        for tensor, w in zip(tensors, direction, strict=True):
            tensor.add_(w, alpha=step)
        yield
    finally:
        for tensor, original in zip(tensors, saved, strict=True):
            tensor.copy_(original)


def _norm(w: Sequence[Tensor]) -> float:
    """Return ‖w‖ over all parameters; 1 for w = 0, for which any step gives 0."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in w)) or 1.0


def _refuse_half_precision(chosen: dict[str, nn.Parameter]) -> None:
    """Refuse weights in half precision, where rounding is larger than the step."""
    for name, parameter in chosen.items():
        require(
            parameter.dtype not in (torch.bfloat16, torch.float16),
            f"{name} is {parameter.dtype}, in which a finite difference is mostly rounding: "
            "load the checkpoint in float32, or take the gram estimator",
        )
