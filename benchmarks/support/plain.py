"""The kernel as one would write it in an afternoon: the methods that ntkprobe is compared with.

Each takes a model and its probes. What would take hours or more memory than there is, is timed on
a part of the work and scaled by counting, and says so.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from unittest.mock import patch

import psutil
import torch
from torch import Tensor, nn
from torch.func import jacrev

from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.forward_mode import ForwardMode, ProbeValues
from ntkprobe.estimators.gram import Gram, shared_prefixes
from ntkprobe.kernel import Estimator, Probe, last_logits

EPS = 1e-3


@dataclass(frozen=True)
class Outcome:
    """What a method took, and the first of the blocks that it gave, `[n', k, m', k]`."""

    seconds: float
    blocks: Tensor
    note: str = ""


Method = Callable[[nn.Module, Sequence[Probe]], Outcome]


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Return how long the work took, and what it gave."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def whole(estimator: Estimator, repeats: int = 1) -> Method:
    """Return the method that runs an estimator on everything, the best of some times."""

    def run(model: nn.Module, probes: Sequence[Probe]) -> Outcome:
        tries = [timed(lambda: estimator(model, probes)) for _ in range(repeats)]
        return Outcome(min(seconds for seconds, _ in tries), tries[-1][1])

    return run


def nothing_shared(model: nn.Module, probes: Sequence[Probe]) -> Outcome:
    """Return what gram gives with every position of every prompt taken for its own."""
    with patch.object(shared_prefixes, "shared_length", lambda p, q: 0):
        return whole(Gram(), repeats=3)(model, probes)


def batched_columns(estimator: FiniteDifference) -> Method:
    """Return A.6 with all observed prompts in one batch, timed on the columns of one prompt."""

    def run(model: nn.Module, probes: Sequence[Probe]) -> Outcome:
        k = len(probes[0])
        columns = estimator.columns(model, probes)
        seconds, found = timed(lambda: torch.stack(list(islice(columns, k)), -1))
        note = f"timed on the columns of 1 prompt of {len(probes)}"
        return Outcome(seconds * len(probes), found.unsqueeze(2), note)

    return run


def forward_columns(estimator: ForwardMode) -> Method:
    """Return the forward-mode estimator, timed on the columns of one prompt."""

    def run(model: nn.Module, probes: Sequence[Probe]) -> Outcome:
        seconds, found = timed(lambda: estimator.columns(model, probes, 0))
        note = f"timed on the columns of 1 prompt of {len(probes)}"
        return Outcome(seconds * len(probes), found.unsqueeze(2), note)

    return run


def literal(model: nn.Module, probes: Sequence[Probe]) -> Outcome:
    """Return A.6 as printed: it says how one pair's block is built, with steps 1 and 2.

    For every pair and column a gradient of x, and two perturbed passes of x′.
    """
    return _pair_by_pair(model, probes, gradients=len(probes) ** 2)


def literal_kept(model: nn.Module, probes: Sequence[Probe]) -> Outcome:
    """Return A.6 with the gradient of a column kept for all pairs that it is a part of."""
    return _pair_by_pair(model, probes, gradients=len(probes))


def _pair_by_pair(
    model: nn.Module, probes: Sequence[Probe], gradients: int, sample: int = 3
) -> Outcome:
    """Return A.6, timed on all pairs of the first few prompts.

    `gradients` is how often the k gradients of a prompt are taken, in all. Between perturbations
    the step is added and taken away in place, which costs the least.
    """
    some, k = probes[:sample], len(probes[0])
    parameters = list(model.parameters())
    found = torch.empty(sample, k, sample, k, dtype=torch.float64)
    first = second = 0.0
    for b, updated in enumerate(some):
        for j in range(k):
            start = time.perf_counter()
            w = gradient(model, parameters, updated, j)
            first += time.perf_counter() - start
            start = time.perf_counter()
            for a, observed in enumerate(some):
                found[a, :, b, j] = _difference(model, parameters, w, observed)
            second += time.perf_counter() - start
    n = len(probes)
    seconds = first / sample * gradients + second * (n / sample) ** 2
    return Outcome(seconds, found, f"timed on {sample}² pairs of {n}²")


def _difference(
    model: nn.Module, parameters: list[nn.Parameter], w: list[Tensor], observed: Probe
) -> Tensor:
    """Return J(x′) w by one central difference of one prompt."""
    with torch.no_grad():
        _step(parameters, w, EPS)
        ahead = observed.read(last_logits(model, [observed.input_ids])[0])
        _step(parameters, w, -2 * EPS)
        behind = observed.read(last_logits(model, [observed.input_ids])[0])
        _step(parameters, w, EPS)
    return (ahead.double() - behind.double()) / (2 * EPS)


def _step(parameters: list[nn.Parameter], w: list[Tensor], step: float) -> None:
    """Move the parameters in place."""
    for parameter, direction in zip(parameters, w, strict=True):
        parameter.add_(direction, alpha=step)


def gradient(
    model: nn.Module, parameters: list[nn.Parameter], probe: Probe, value: int
) -> list[Tensor]:
    """Return one row of a Jacobian by a plain backward pass."""
    read = probe.read(last_logits(model, [probe.input_ids])[0])
    return list(torch.autograd.grad(read[value], parameters))


def stacked(model: nn.Module, probes: Sequence[Probe]) -> Outcome:
    """Return all gradients as rows of W, then W Wᵀ, in tiles of prompts of which two fit.

    With more than two tiles, gradients are taken again for every pair of them (there is no room to
    keep them); then one tile and one pair are timed, and the others counted.
    """
    k, parameters = len(probes[0]), list(model.parameters())
    size = sum(p.numel() for p in parameters)
    fit = int(0.6 * psutil.virtual_memory().available / (4 * k * size))
    if len(probes) <= fit:
        seconds, found = timed(lambda: _product(*[_rows(model, parameters, probes)] * 2))
        return Outcome(seconds, _blocks(found, k))
    tile = max(1, fit // 2)
    left_seconds, left = timed(lambda: _rows(model, parameters, probes[:tile]))
    right = _rows(model, parameters, probes[tile : 2 * tile])
    pair_seconds, _ = timed(lambda: _product(left, right))
    tiles = len(probes) / tile
    seconds = left_seconds * tiles * (tiles + 1) / 2 + pair_seconds * tiles * (tiles + 1) / 2
    note = f"in {tiles:.1f} tiles of {tile} prompts; timed on 1 tile, 1 pair of tiles"
    return Outcome(seconds, _blocks(_product(left, left), k), note)


def _rows(model: nn.Module, parameters: list[nn.Parameter], probes: Sequence[Probe]) -> Tensor:
    """Return W, a row for every prompt and value."""
    size, k = sum(p.numel() for p in parameters), len(probes[0])
    rows = torch.empty(len(probes) * k, size)
    for a, probe in enumerate(probes):
        read = probe.read(last_logits(model, [probe.input_ids])[0])
        for i in range(k):
            flat = torch.autograd.grad(read[i], parameters, retain_graph=True)
            torch.cat([g.flatten() for g in flat], out=rows[a * k + i])
    return rows


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner products of rows."""
    return left @ right.T


def _blocks(products: Tensor, k: int) -> Tensor:
    """Return `[n k, n k]` as `[n, k, n, k]`."""
    return products.double().unflatten(1, (-1, k)).unflatten(0, (-1, k))


def jacobian_contraction(model: nn.Module, probes: Sequence[Probe]) -> Outcome:
    """Return `torch.func.jacrev` of every prompt, then the products, a parameter at a time."""
    theta = {f"model.{name}": p.detach() for name, p in model.named_parameters()}

    def contract() -> Tensor:
        with torch.no_grad():
            rows = [jacrev(ProbeValues(model, [probe]).at)(theta) for probe in probes]
        total = torch.zeros(len(probes) * len(probes[0]), len(probes) * len(probes[0]))
        for name in theta:
            flat = torch.cat([row[name].flatten(2)[0] for row in rows])
            total += flat @ flat.T
        return _blocks(total, len(probes[0]))

    return Outcome(*timed(contract))
