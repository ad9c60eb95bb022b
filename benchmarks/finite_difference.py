"""How wrong the finite differences of A.6 are, against their step.

`python benchmarks/finite_difference.py` writes `finite_difference.md`; minutes on 2 cores. The
reference is the definition in float64 at the same weights (bfloat16: as rounded). Errors are
relative errors of blocks, ‖K − K_ref‖_F / ‖K_ref‖_F.
"""

from copy import deepcopy
from unittest.mock import patch

import torch
from support.models import Shape, ragged_prompts, top_probes
from support.tables import machine, table, write
from torch import Tensor, nn
from tqdm import tqdm

from ntkprobe.estimators import finite_difference
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.kernel import Probe, norms, similarity
from ntkprobe.models.precision import Float64Throughout

PAPERS = 1e-3
STEPS = (1e-5, 1e-4, PAPERS, 3e-3, 1e-2, 3e-2, 1e-1)
MODELS = {
    "d = 128, 4 layers": (Shape(128, 4, 2000), 6, 5),
    "d = 128, 4 layers, initialised at 0.05": (Shape(128, 4, 2000, 0.05), 6, 5),
    "d = 512, 8 layers": (Shape(512, 8, 8000), 3, 3),
}


def main() -> None:
    """Measure every model in both precisions, and write the tables."""
    sections = [
        "# Finite differences against their step",
        "Relative error of K's blocks, worst / median. `raw` steps by ε·w as A.6 prints it, `unit` "
        "by ε·w/‖w‖. ε = 1e-3 is the paper's. *The similarity* is ‖K(x′,x)‖/‖K(x′,x′)‖ at that "
        f"step. {machine()}; by `python benchmarks/finite_difference.py`.",
    ]
    for title, (shape, count, k) in MODELS.items():
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            sections += [f"## {title}, {name}", measured(shape, count, k, dtype)]
    print(write(__file__, *sections))


def measured(shape: Shape, count: int, k: int, dtype: torch.dtype) -> str:
    """Return the section of one model in one precision."""
    model = shape.build().to(dtype)
    exact = deepcopy(model).double()
    probes = top_probes(exact, ragged_prompts(count, (8, 16), shape.vocabulary), k)
    with Float64Throughout():
        expected = Dense()(exact, probes)
    del exact
    lengths = Dense()(model, probes).diagonal(0, 0, 2).diagonal(0, 0, 1).sqrt()
    rows, said = [], ""
    for eps in tqdm(STEPS, desc=f"d={shape.width} {dtype}", leave=False):
        found = {
            step: blocks(FiniteDifference(eps, step), model, probes) for step in ("raw", "unit")
        }
        rows.append([f"{eps:g}", *(errors(f, expected) for f in found.values())])
        if eps == PAPERS:
            said = "; ".join(f"{step}: {consequences(f, expected)}" for step, f in found.items())
    rows.append(["none: exact", errors(Dense()(model, probes), expected), ""])
    return "\n\n".join(
        [
            f"{count} prompts of 8 to 16 tokens, k = {k}; "
            f"‖w‖ from {lengths.min():.2g} to {lengths.max():.2g}.",
            table(["ε", "raw", "unit"], rows),
            f"At ε = 1e-3, {said}.",
        ]
    )


def blocks(estimator: FiniteDifference, model: nn.Module, probes: list[Probe]) -> Tensor:
    """Return K, in bfloat16 too, which the estimator refuses."""
    with patch.object(finite_difference, "_refuse_half_precision"):
        columns = torch.stack(list(estimator.columns(model, probes)), -1)
    return columns.unflatten(-1, (len(probes), -1))


def errors(found: Tensor, expected: Tensor) -> str:
    """Return the worst and the median relative error of a block."""
    relative = norms(found - expected) / norms(expected)
    return f"{float(relative.max()):.1e} / {float(relative.median()):.1e}"


def consequences(found: Tensor, expected: Tensor) -> str:
    """Return what the error does to the diagonal, to the similarity, and to the symmetry."""
    own = (norms(found - expected) / norms(expected)).diagonal()
    ratio = similarity(norms(found)) / similarity(norms(expected)) - 1
    apart = ~torch.eye(len(ratio), dtype=torch.bool)
    skew = (found - found.permute(2, 3, 0, 1)).norm() / found.norm()
    return (
        f"a prompt's own block is off by {percent(own.median())} (worst {percent(own.max())}), "
        f"the similarity by {percent(ratio[apart].abs().median())} "
        f"(worst {percent(ratio[apart].abs().max())}), ‖K − Kᵀ‖/‖K‖ is {percent(skew)}"
    )


def percent(value: Tensor) -> str:
    """Return two significant digits."""
    return f"{float(f'{100 * float(value):.2g}'):g} %"


if __name__ == "__main__":
    main()
