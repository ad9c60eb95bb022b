"""Every way to compute the kernel, side by side on the same work.

`python benchmarks/kernel.py` writes `kernel_avx512.md`, `kernel_avx2.md` or what else torch uses on
the processor: as many prompts as the paper's, each method in a process of its own, then fewer over
the number of prompts, their length, k, width and depth, with errors and memory. Ten minutes on 2
cores with AVX-512 that do nothing else, half an hour with AVX2; `--quick` leaves out the former.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from support import floor, packages, plain
from support.fresh import alone, peak
from support.models import Shape, ragged_prompts, top_probes
from support.plain import Method, Outcome, whole
from support.tables import machine, table, write
from threadpoolctl import threadpool_info
from torch import Tensor, nn
from tqdm import tqdm

from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.forward_mode import ForwardMode
from ntkprobe.estimators.gram import Gram
from ntkprobe.estimators.gram.threads import in_place
from ntkprobe.kernel import Probe, norms
from ntkprobe.models.precision import Float64Throughout

CAPABILITY = torch.backends.cpu.get_cpu_capability()
"""The vector instructions that torch uses here."""


@dataclass(frozen=True)
class Work:
    """What is to be computed: the kernel between n prompts of a model, over all parameters.

    Each prompt stands behind `shared` tokens that are the same for all, as a chat template's are.
    """

    prompts: int
    shortest: int
    longest: int
    k: int
    width: int
    depth: int
    vocabulary: int
    shared: int = 0

    def build(self) -> tuple[nn.Module, list[Probe]]:
        """Return the model and the probes."""
        model = Shape(self.width, self.depth, self.vocabulary).build()
        own = ragged_prompts(self.prompts, (self.shortest, self.longest), self.vocabulary)
        same = ragged_prompts(1, (self.shared, self.shared), self.vocabulary, seed=1)
        ids = [torch.cat([*same, one]) for one in own]
        return model, top_probes(model, ids, self.k)

    def __str__(self) -> str:
        """Return a line that says it all."""
        behind = f" behind {self.shared} that all share" if self.shared else ""
        return (
            f"{self.prompts} prompts of {self.shortest} to {self.longest} tokens{behind}, "
            f"k = {self.k}, "
            f"Qwen2 of d = {self.width}, {self.depth} layers, tied vocabulary of {self.vocabulary}"
        )


PAPER = Work(75, 20, 30, 10, 512, 8, 8000)
ALIKE = replace(PAPER, shortest=10, longest=20, shared=24)
SMALL = Work(12, 8, 16, 5, 256, 4, 2000)
COMPARED = 6  # prompts, in what is varied: all that a reference is taken of
SWEEPS: dict[str, list[Work]] = {
    "prompts": [replace(SMALL, prompts=n) for n in (6, 12, 24, 48)],
    "tokens": [replace(SMALL, shortest=t, longest=t) for t in (12, 32, 64, 128)],
    "k": [replace(SMALL, k=k) for k in (1, 5, 10, 20)],
    "width": [replace(SMALL, width=d) for d in (128, 256, 512)],
    "depth": [replace(SMALL, depth=layers) for layers in (2, 4, 8)],
}

GRAM, STACKED, JACREV, LITERAL = "gram", "stacked gradients, W Wᵀ", "jacrev", "A.6, pair by pair"
APART = "gram, nothing shared"
KEPT = "A.6, pair by pair, w kept"
BATCHED = "finite_difference (A.6, batched)"
PEAKS, HEAVY = "peaks", (GRAM, STACKED)  # whose memory is measured beside one another
METHODS: dict[str, Method] = {
    GRAM: whole(Gram(), repeats=3),
    APART: plain.nothing_shared,
    BATCHED: plain.batched_columns(FiniteDifference()),
    "forward_mode": plain.forward_columns(ForwardMode()),
    "dense": whole(Dense()),
    STACKED: plain.stacked,
    JACREV: plain.jacobian_contraction,
    LITERAL: plain.literal,
    KEPT: plain.literal_kept,
    **packages.installed(),
}


def main() -> None:
    """Run what was asked for, or one piece of it as a worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the 75 prompts")
    parser.add_argument("--worker", nargs=3, metavar=("METHOD", "WORK", "REFERENCE"))
    asked = parser.parse_args()
    if asked.worker:
        method, work, reference = asked.worker
        print(json.dumps(worker(method, Work(**json.loads(work)), Path(reference))))
        return
    sections = [
        f"# The kernel, computed side by side ({CAPABILITY})",
        f"{machine()}; by `python benchmarks/kernel.py`. Errors are the worst of all blocks "
        "compared, relative to `dense` in float64; the memory is what a fresh process rose by.",
    ]
    if not asked.quick:
        sections += paper()
    sections += ["## In small", compared(SMALL, list(METHODS))[0], *sweeps()]
    print(write(__file__, *sections, kind=CAPABILITY.lower()))


def paper() -> list[str]:
    """Return the sections on as many prompts as the paper's (25 of each group)."""
    shown, found = compared(PAPER, [GRAM, BATCHED, "forward_mode", STACKED, LITERAL, KEPT, "floor"])
    fit = replace(PAPER, prompts=fitting(PAPER))
    few, found_few = compared(fit, [GRAM, JACREV, STACKED])
    model, _ = PAPER.build()
    stacked_bytes = 4 * PAPER.prompts * PAPER.k * sum(p.numel() for p in model.parameters())
    gram = found[GRAM]

    def times(other: dict[str, Any], base: dict[str, Any] = gram) -> float:
        return other.get("seconds", float("nan")) / base.get("seconds", float("nan"))

    required = [
        ["A.6, pair by pair / gram", "≥ 300", f"{times(found[LITERAL]):.0f}"],
        ["A.6, pair by pair, w kept / gram", "", f"{times(found[KEPT]):.0f}"],
        ["A.6, pair by pair, w kept / floor", "", f"{times(found[KEPT], found['floor']):.0f}"],
        ["A.6, batched / gram", "≥ 30", f"{times(found[BATCHED]):.0f}"],
        ["stacked gradients / gram", "≥ 8", f"{times(found[STACKED]):.0f}"],
        [
            f"jacrev / gram, at {fit.prompts} prompts",
            "≥ 8",
            f"{times(found_few[JACREV], found_few[GRAM]):.1f}",
        ],
        ["gram / floor", "≤ 1.3", f"{times(gram, found['floor']):.2f}"],
        [
            "gram's memory / stacked gradients'",
            "≤ 0.1",
            f"{gram.get('peak', 0) / stacked_bytes:.3f}",
        ],
    ]
    return [
        "## As many prompts as the paper's",
        shown,
        "A.6 says how the block of one pair is built, a column at a time: 1. a gradient w of x; "
        "2. two perturbed passes of x′. Pair by pair does both for every pair, as printed; with w "
        "kept, the gradients of a prompt are taken once, for all 75 rows.",
        f"Stacked gradients are N·k·P = {stacked_bytes / 2**30:.1f} GiB. The floor: "
        f"{found['floor'].get('note')}.",
        small_products(),
        table(["ratio", "required", "measured"], required),
        f"### At the {fit.prompts} prompts whose Jacobian fits",
        few,
        "### Prompts that begin alike",
        compared(ALIKE, [GRAM, APART])[0],
        "What all prompts begin with, gram pays for once per prompt and not once per pair.",
    ]


def small_products() -> str:
    """Return how gram multiplies small matrices on this machine."""
    cores = {one.get("architecture", "?") for one in threadpool_info() if one["user_api"] == "blas"}
    how = "in place, by numpy" if in_place(torch.zeros(1)) else "by torch, which copies them first"
    return (
        f"Gram multiplies small matrices {how} (numpy's BLAS: {', '.join(sorted(cores))}). In "
        "place takes OpenBLAS with AVX-512; elsewhere gram is further from the floor."
    )


def fitting(work: Work) -> int:
    """Return how many prompts' Jacobians fit into the memory that is free, with room to work."""
    import psutil

    model, _ = replace(work, prompts=1).build()
    size = sum(parameter.numel() for parameter in model.parameters())
    return max(2, int(0.65 * psutil.virtual_memory().available / (4 * work.k * size)))


def compared(work: Work, methods: Sequence[str]) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the table of methods, each in a fresh process, and what each gave."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "reference.pt"
        for method in tqdm(["reference", *methods], desc=str(work)):
            settings = json.dumps(asdict(work))
            found[method] = alone(__file__, "--worker", method, settings, str(reference))
    base = found[GRAM].get("seconds", float("nan"))
    rows = [
        [
            method,
            f"{one['seconds']:.3g}",
            f"{one['seconds'] / base:.3g}",
            f"{one['peak'] / 2**20:.0f}" if "peak" in one else "",
            f"{one['error']:.1e}" if "error" in one else "",
            one.get("note", ""),
        ]
        if "seconds" in one
        else [method, "", "", "", "", one.get("failed", "")]
        for method, one in found.items()
        if method != "reference"
    ]
    header = ["method", "seconds", "× gram", "MiB", "error", ""]
    return f"{work}.\n\n{table(header, rows)}", found


def worker(method: str, work: Work, reference: Path) -> dict[str, Any]:
    """Return what one method gave on some work, as JSON takes it."""
    model, probes = work.build()
    if method == "reference":
        torch.save(expected(model, probes), reference)
        return {}
    if method == PEAKS:
        return {name: peak(partial(METHODS[name], model, probes))[1] for name in HEAVY}
    if method == "floor":
        seconds = min(floor.passes(model, probes) for _ in range(2))
        products, rate = floor.multiply_adds(model, probes), floor.rate()
        note = (
            f"passes {seconds:.1f} s, products {products / rate:.1f} s "
            f"({products / 1e9:.0f} G multiply-adds at {rate / 1e9:.0f} G/s)"
        )
        return {"seconds": seconds + products / rate, "note": note}
    outcome, rose = peak(lambda: METHODS[method](model, probes))
    return {
        "seconds": outcome.seconds,
        "peak": rose,
        "error": error(outcome.blocks, torch.load(reference)),
        "note": outcome.note,
    }


def expected(model: nn.Module, probes: list[Probe]) -> Tensor:
    """Return the definition's blocks in float64, of as many prompts as 5 GiB of Jacobians hold."""
    size = sum(parameter.numel() for parameter in model.parameters())
    some = max(2, int(5 * 2**30 / (8 * len(probes[0]) * size)))
    with Float64Throughout():
        return Dense()(model.double(), probes[:some])


def error(found: Tensor, reference: Tensor) -> float:
    """Return the worst relative error of the blocks that both have."""
    n, m = (min(found.shape[d], reference.shape[d]) for d in (0, 2))
    f, r = found[:n, :, :m], reference[:n, :, :m]
    return float((norms(f - r) / norms(r)).max())


def sweeps() -> list[str]:
    """Return the sections that vary one size at a time: times, then errors and memory."""
    sections = [
        "What follows varies one size of this: seconds of all methods in one process, in multiples "
        f"of gram's; then errors, of the blocks of the first {COMPARED} prompts, and the MiB that "
        "a fresh process rose by."
    ]
    for name, works in SWEEPS.items():
        found = [swept(work) for work in tqdm(works, desc=f"over {name}")]
        sizes = [{"tokens": work.longest}.get(name, getattr(work, name, None)) for work in works]
        lines = [[size, *one.times()] for size, one in zip(sizes, found, strict=True)]
        methods = list(found[0].outcomes)
        sections += [
            f"### Over {name}",
            table([name, GRAM, *(f"{method} / gram" for method in methods[1:])], lines),
            table(
                [name, *(f"{method}: error" for method in methods), *(f"{m}: MiB" for m in HEAVY)],
                [[size, *one.costs()] for size, one in zip(sizes, found, strict=True)],
            ),
        ]
    return sections


@dataclass(frozen=True)
class Swept:
    """What every method gave on some work, gram first, and what the memory of two rose by."""

    outcomes: dict[str, Outcome]
    errors: dict[str, float]
    peaks: dict[str, Any]

    def times(self) -> list[str]:
        """Return gram's seconds, and those of the others in multiples of it."""
        base, *others = (outcome.seconds for outcome in self.outcomes.values())
        return [f"{base:.3g} s", *(f"{seconds / base:.3g}" for seconds in others)]

    def costs(self) -> list[str]:
        """Return every method's worst error, and the memory."""
        memory = [f"{self.peaks[m] / 2**20:.0f}" if m in self.peaks else "" for m in HEAVY]
        return [*(f"{found:.1e}" for found in self.errors.values()), *memory]


@cache
def swept(work: Work) -> Swept:
    """Return what every method gives; work that stands in several tables is done once."""
    model, probes = work.build()
    outcomes = {name: method(model, probes) for name, method in METHODS.items() if name != APART}
    reference = expected(model, probes[:COMPARED])
    errors = {name: error(outcome.blocks, reference) for name, outcome in outcomes.items()}
    peaks = alone(__file__, "--worker", PEAKS, json.dumps(asdict(work)), "")
    return Swept(outcomes, errors, peaks)


if __name__ == "__main__":
    main()
