"""The kernel from random projections of gradients: linear in the prompts, with a standard error.

Every gradient is projected once (`models.projections`), in several independent parts; the kernel is
then one product of features. K̂_r = F_r F_rᵀ is unbiased for K in each part r, but ‖K̂_r‖² is not
for ‖K‖²: it holds the variance of K̂_r besides, most of all at a prompt's block with itself. The
products ⟨K̂_r, K̂_s⟩ of different parts hold none, and their mean is unbiased (Cov vanishes).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ..errors import count
from ..kernel import Blocks, Probe, Table, last_logits, prepare
from ..models.gradients import PerSampleFactors
from ..models.parameters import ParameterSelection
from ..models.projections import Projections, ProjectionSettings
from ..models.validation import finite

_HELD = 1 << 27
"""Numbers of estimated blocks that are held at once."""


@dataclass(frozen=True)
class Sketch:
    """Features of every prompt and value read, then products of features.

    Attributes:
        side: rows and columns of each matrix's projected gradient.
        parts: independent projections, to tell the error by.
        seed: of the projections.
        batch_size: prompts in one pass.
    """

    side: int = 16
    parts: int = 8
    seed: int = 0
    batch_size: int = 32
    rtol: ClassVar[float] = 0.5  # of a single block, by `verify`; `norms` states its own errors

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        self._settings()
        count("batch_size", self.batch_size)

    def __call__(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> Blocks:
        """Return an unbiased estimate of K, the mean over all parts; for its norms see `norms`."""
        features = self.features(model, probes, parameters)
        n, k = features.shape[:2]
        flat = features.flatten(0, 1).flatten(1) / self.parts**0.5
        return (flat @ flat.T).view(n, k, n, k).double().cpu()

    def norms(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> tuple[Table, Table]:
        """Return estimates of ‖K(x′,x)‖_F and their standard errors, both `[n, n]`.

        The square is unbiased; its root is 0 where the estimate of the square is negative, with the
        root of the square's error as its own.
        """
        return roots(*squared_norms(self.features(model, probes, parameters)))

    def features(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> Float[Tensor, "n k parts size"]:
        """Return the projected gradients of every prompt's values."""
        chosen = prepare(model, probes, parameters)
        project = Projections(chosen, self._settings())
        gradients = PerSampleFactors(model, chosen)

        def forward(rows: Sequence[int]) -> Float[Tensor, "rows k"]:
            logits = finite(last_logits(model, [probes[row].input_ids for row in rows]), rows)
            return torch.stack([probes[r].read(z) for r, z in zip(rows, logits, strict=True)])

        found: list[Tensor] = [torch.empty(0)] * len(probes)
        order = sorted(range(len(probes)), key=lambda row: len(probes[row].input_ids))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            each = torch.stack([project(some) for some in gradients(forward, rows)], 1)
            for row, features in zip(rows, each, strict=True):
                found[row] = features
        return torch.stack(found)

    def _settings(self) -> ProjectionSettings:
        return ProjectionSettings(side=self.side, parts=self.parts, seed=self.seed)


def squared_norms(features: Float[Tensor, "n k parts size"]) -> tuple[Table, Table]:
    """Return unbiased estimates of ‖K(x′,x)‖_F² and their standard errors by the jackknife.

    Args:
        features: of every prompt and value, in 3 parts or more.

    Returns:
        Both `[n, n]` float64. The jackknife leaves out one part at a time.
    """
    n, k, parts, _ = features.shape
    flat = features.permute(2, 0, 1, 3).flatten(1, 2)  # [parts, n k, size]
    at_once = max(1, _HELD // (parts * k * n * k))
    found = [
        _of_rows(flat[:, k * start : k * (start + at_once)] @ flat.transpose(1, 2), k)
        for start in range(0, n, at_once)
    ]
    squares, errors = zip(*found, strict=True)
    return torch.cat(squares).cpu(), torch.cat(errors).cpu()


def roots(squared: Table, error: Table) -> tuple[Table, Table]:
    """Return the norms of estimated squares, and their errors to first order."""
    norms = squared.clamp(min=0).sqrt()
    return norms, torch.where(squared > 0, error / (2 * norms), error.sqrt())


def _of_rows(kernels: Float[Tensor, "parts mk nk"], k: int) -> tuple[Tensor, Tensor]:
    """Return the squares of the blocks of some prompts, and their errors."""
    parts = len(kernels)
    total = kernels.sum(0)
    own = _block_sums(kernels.square(), k)  # ‖K_r‖²
    with_all = _block_sums(kernels * total, k)  # ⟨K_r, Σ K_s⟩
    whole = with_all.sum(0)
    # Of the parts without r: ‖Σ − K_r‖² less the squares that are left.
    without = whole - 2 * with_all + own - (own.sum(0) - own)
    estimates = without / ((parts - 1) * (parts - 2))
    error = ((parts - 1) * estimates.var(0, correction=0)).sqrt()
    return (whole - own.sum(0)) / (parts * (parts - 1)), error


def _block_sums(values: Float[Tensor, "*parts mk nk"], k: int) -> Float64[Tensor, "*parts m n"]:
    """Return the sum over every block of k × k."""
    lead, (rows, columns) = values.shape[:-2], values.shape[-2:]
    return values.double().reshape(*lead, rows // k, k, columns // k, k).sum((-1, -3))
