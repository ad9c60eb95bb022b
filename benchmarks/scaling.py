"""How gram's cost grows with each size of the work, on the shape of a real model, and its peers'.

`python benchmarks/scaling.py` writes `scaling.csv`, `scaling_peers.csv`, `scaling.md` and
`scaling.png`. One size is varied at a time around a base; the shape is SmolLM2-135M's with random
weights, and narrower and flatter ones of the same proportions. Everything runs on one thread, by
its processor time, which other programs disturb less than the clock. The exponent is the slope of
log cost over log size between the two largest sizes, and over all sizes by least squares. What the
files hold is not measured again.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import torch
from support import floor, packages, plain
from support.fresh import alone
from support.models import ragged_prompts, top_probes
from support.tables import machine, table, write
from torch import nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.gram import Gram


@dataclass(frozen=True)
class Work:
    """The kernel between prompts of a Llama with heads of 64, a third as many for keys and values.

    Attributes:
        prompts: N.
        tokens: T, of each prompt.
        k: logits of each prompt.
        width: of the residual stream, a multiple of 192.
        depth: blocks.
        vocabulary: tokens, tied.
    """

    prompts: int = 12
    tokens: int = 24
    k: int = 5
    width: int = 576
    depth: int = 30
    vocabulary: int = 49152

    def build(self) -> nn.Module:
        """Return the model in evaluation mode."""
        torch.manual_seed(0)
        heads = self.width // 64
        config = LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.width * 8 // 3,
            num_hidden_layers=self.depth,
            num_attention_heads=heads,
            num_key_value_heads=heads // 3,
            vocab_size=self.vocabulary,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config).eval()


BASE = Work()
SWEEPS: dict[str, list[Work]] = {
    "prompts": [replace(BASE, prompts=n) for n in (6, 12, 24, 48)],
    "tokens": [replace(BASE, tokens=t) for t in (12, 24, 48, 96)],
    "k": [replace(BASE, k=k) for k in (1, 2, 5, 10, 20)],
    "width": [replace(BASE, width=d) for d in (192, 384, 576, 768)],
    "depth": [replace(BASE, depth=d) for d in (4, 8, 15, 30)],
    "vocabulary": [replace(BASE, vocabulary=v) for v in (8192, 16384, 49152)],
}
PLACE = Path(__file__).with_suffix(".csv")
FIGURE = PLACE.with_suffix(".png")
PEERS = PLACE.with_name("scaling_peers.csv")
FEW = replace(BASE, prompts=3)  # whose Jacobian of 8 GB fits beside the model
METHODS: dict[str, plain.Method] = {
    "gram": plain.whole(Gram(), repeats=3),
    "jacrev": plain.jacobian_contraction,
    "stacked gradients, W Wᵀ": plain.stacked,
    "A.6, batched": plain.batched_columns(FiniteDifference()),
    "A.6, pair by pair": plain.literal,
    **packages.installed(),
}


def main() -> None:
    """Measure what is missing, and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2, help="the quickest counts")
    parser.add_argument("--method", choices=METHODS, help="time this one alone")
    given = parser.parse_args()
    repeats = given.repeats
    torch.set_num_threads(1)
    if given.method:
        print(json.dumps(peer(given.method)))
        return
    rows = pd.read_csv(PLACE).to_dict("records") if PLACE.is_file() else []
    for work in tqdm(missing(rows)):
        rows.append({**asdict(work), **measured(work, repeats)})
        pd.DataFrame(rows).to_csv(PLACE, index=False)
    found = pd.DataFrame(rows)
    draw(found)
    print(write(__file__, *sections(found), *peers()))


def missing(rows: list[dict]) -> list[Work]:
    """Return the works without a row, each once."""
    names = list(asdict(BASE))
    there = {tuple(int(row[name]) for name in names) for row in rows}
    works = dict.fromkeys(work for sweep in SWEEPS.values() for work in sweep)
    return [work for work in works if tuple(asdict(work).values()) not in there]


def measured(work: Work, repeats: int) -> dict[str, float]:
    """Return the processor seconds of gram, of one forward and k backward passes, and products.

    The check of the rules, once for a run of checkpoints, is timed apart.
    """
    model = work.build()
    prompts = ragged_prompts(work.prompts, (work.tokens, work.tokens), work.vocabulary)
    probes = top_probes(model, prompts, work.k)
    estimator = Gram()
    start = process_time()
    estimator.coverage(model, probes)
    check, gram, passes = process_time() - start, float("inf"), float("inf")
    for _ in range(repeats):
        start = process_time()
        estimator(model, probes)
        gram = min(gram, process_time() - start)
        start = process_time()
        floor.passes(model, probes)
        passes = min(passes, process_time() - start)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "check": check,
        "gram": gram,
        "passes": passes,
        "multiply_adds": floor.multiply_adds(model, probes),
        "rate": floor.rate(),
    }


def peer(name: str) -> dict[str, object]:
    """Return the seconds of one method, and what it says of them."""
    model = FEW.build()
    prompts = ragged_prompts(FEW.prompts, (FEW.tokens, FEW.tokens), FEW.vocabulary)
    outcome = METHODS[name](model, top_probes(model, prompts, FEW.k))
    return {"seconds": outcome.seconds, "note": outcome.note}


def peers() -> list[str]:
    """Return the section on other ways to the same kernel, each in a process of its own."""
    rows = pd.read_csv(PEERS, keep_default_na=False).to_dict("records") if PEERS.is_file() else []
    for name in tqdm([name for name in METHODS if name not in {row["method"] for row in rows}]):
        found = alone(__file__, "--method", name)
        note = found.get("failed") or found["note"]
        rows.append({"method": name, "seconds": found.get("seconds", ""), "note": note})
        pd.DataFrame(rows).to_csv(PEERS, index=False)
    base = float(rows[0]["seconds"])
    cells = [
        [row["method"], f"{float(s):.3g}", f"{float(s) / base:.3g}", row["note"]]
        if (s := row["seconds"])
        else [row["method"], "", "", row["note"]]
        for row in rows
    ]
    return [
        "## Other ways to the same kernel",
        f"{FEW.prompts} prompts, the most whose Jacobian fits beside the model in 16 GiB; else as"
        " above. Each in a process of its own, one after the other, by the clock, one thread.",
        table(["method", "seconds", "× gram", ""], cells),
    ]


def swept(found: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of each size that is varied, in order."""
    for name in SWEEPS:
        others = [other for other in asdict(BASE) if other != name]
        same = (found[others] == pd.Series(asdict(BASE))[others]).all(axis=1)
        yield name, found[same].sort_values(name)


def exponents(sizes: pd.Series, cost: pd.Series) -> tuple[float, float]:
    """Return the slope between the two largest sizes, and that of least squares, in log log."""
    x, y = np.log(sizes.to_numpy(float)), np.log(cost.to_numpy(float))
    return float((y[-1] - y[-2]) / (x[-1] - x[-2])), float(np.polyfit(x, y, 1)[0])


def sections(found: pd.DataFrame) -> list[str]:
    """Return the page's sections."""
    growth, tables = [], []
    for name, rows in swept(found):
        by_size = name in ("width", "vocabulary")
        last, fitted = exponents(rows["parameters" if by_size else name], rows["gram"])
        growth.append([f"P, by {name}" if by_size else name, f"{last:.2f}", f"{fitted:.2f}"])
        cells = [
            [
                row[name],
                f"{row['parameters'] / 1e6:.1f} M",
                f"{row['check']:.1f}",
                f"{row['gram']:.1f}",
                f"{row['passes']:.1f}",
                f"{row['multiply_adds'] / 1e9:.0f} G",
                f"{row['gram'] / (row['passes'] + row['multiply_adds'] / row['rate']):.2f}",
            ]
            for row in rows.to_dict("records")
        ]
        header = [
            name,
            "P",
            "check, CPU s",
            "gram, CPU s",
            "passes, CPU s",
            "products",
            "gram / floor",
        ]
        tables += [f"## Over {name}", table(header, cells)]
    rates = " or ".join(f"{rate / 1e9:.0f}" for rate in sorted(found["rate"].unique()))
    base = (
        f"N = {BASE.prompts}, T = {BASE.tokens}, k = {BASE.k}, {BASE.depth} blocks of {BASE.width}"
    )
    return [
        "# How gram's cost grows",
        f"Around {base}, tied vocabulary of {BASE.vocabulary} (SmolLM2-135M's shape, random"
        f" weights); {machine()}, processor time, the quickest of the repeats; by `python"
        f" benchmarks/scaling.py`. The floor is the passes and the products at {rates} G"
        " multiply-adds a second, measured beside them. The check of the rules, once for a run of"
        " checkpoints, is not in gram's seconds.",
        table(["growing", "exponent at the end", "over all"], growth),
        "Passes grow as N, and products as N²: the exponent in N lies between, and nears 2 as N"
        " grows. Likewise for k. Gram runs every block forward twice, which the floor does once.",
        "![cost over each size](scaling.png)",
        *tables,
    ]


def draw(found: pd.DataFrame) -> None:
    """Write the figure: a panel for each size."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(10, 6), sharey=True, layout="constrained")
    for ax, (name, rows) in zip(panels.flat, swept(found), strict=True):
        for column, label in (("gram", "gram"), ("passes", "its passes")):
            ax.plot(rows[name], rows[column], "o-", label=label)
        last, _ = exponents(rows[name], rows["gram"])
        ax.set(xscale="log", yscale="log", xlabel=name, title=f"slope at the end {last:.2f}")
        ax.set_xticks(rows[name], [str(size) for size in rows[name]])
        ax.minorticks_off()
    for ax in panels[:, 0]:
        ax.set_ylabel("processor seconds")
    panels[0, 0].legend(frameon=False)
    figure.savefig(FIGURE, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
