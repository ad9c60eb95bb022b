"""The memory that each part of measuring a checkpoint of a real model takes at its highest.

`python benchmarks/real_memory.py --model MODEL --prompts FILE` writes `real_memory.md`. MODEL is a
folder or a GGUF file, FILE what `ntkprobe measure --prompts` takes. Each part runs in a process of
its own, which has loaded the model; the peak counts the weights and the libraries.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from support.fresh import alone, peak
from support.tables import machine, table, write
from torch import nn
from tqdm import tqdm

import ntkprobe as ntk
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.measurement import encode
from ntkprobe.models.architecture import decoder_list
from ntkprobe.models.memory import return_freed_memory
from ntkprobe.prompts.prompt_set import PromptSet

Part = Callable[[Any, Any, PromptSet], Any]
PARTS: dict[str, Part] = {
    "one forward pass of 8 prompts": lambda model, tokenizer, prompts: ntk.measure_refusal(
        model, tokenizer, prompts.take(list(range(8))), generate=False, batch_size=8
    ),
    "kernel by layer": lambda model, tokenizer, prompts: ntk.measure_kernel(
        model, tokenizer, prompts, by="layer"
    ),
    "P(refuse)": lambda model, tokenizer, prompts: ntk.measure_refusal(
        model, tokenizer, prompts, generate=False
    ),
    "P(refuse), 64 prompts at a time as `ntkprobe measure`": lambda model, tokenizer, prompts: (
        ntk.measure_refusal(model, tokenizer, prompts, generate=False, batch_size=64)
    ),
    "P(refuse) and answers": lambda model, tokenizer, prompts: ntk.measure_refusal(
        model, tokenizer, prompts, generate=True, max_new_tokens=32
    ),
    "activations": lambda model, tokenizer, prompts: ntk.measure_activations(
        model, tokenizer, prompts
    ),
}
AIM = 3.0
"""Weights that the measurement of 75 prompts may take at its highest."""


def main() -> None:
    """Measure every part, or one as a worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[75, 300])
    parser.add_argument("--kernel-at-most", type=int, default=75, help="its time grows as N²")
    parser.add_argument("--worker", nargs=2, metavar=("PART", "COUNT"))
    given = parser.parse_args()
    if given.model is None or given.prompts is None:
        print("nothing measured: give --model MODEL (a folder or a GGUF file) and --prompts FILE")
        return
    if given.worker:
        part, count = given.worker
        print(json.dumps(measured(given.model, given.prompts, part, int(count))))
        return
    rows = []
    for count in given.counts:
        for part in tqdm(PARTS, desc=f"{count} prompts"):
            if part.startswith("kernel") and count > given.kernel_at_most:
                continue
            where = ["--model", given.model, "--prompts", str(given.prompts)]
            found = alone(__file__, *where, "--worker", part, str(count))
            rows.append([part, count, *cells(found)])
    header = [
        "",
        "prompts",
        "weights, MiB",
        "before, MiB",
        "peak, MiB",
        "peak / weights",
        "rose by",
        "of which it needs",
    ]
    print(
        write(
            __file__,
            "# Memory of measuring a real model, part by part",
            f"{Path(given.model).name} in float32; {machine()}; by `python"
            f" benchmarks/real_memory.py`. Before is the process with the model loaded; the aim is"
            f" a peak of at most {AIM:g} times the weights with 75 prompts.",
            table(header, rows),
            "The kernel needs at one time the gradients of one block for all prompts, what enters"
            " every block, and two blocks' cotangents. Going through a block in parts, attention"
            " apart from what follows it, would need less at one time.",
        )
    )


def cells(found: dict[str, Any]) -> list[str]:
    """Return the figures of one part as text."""
    if "failed" in found:
        return ["", "", found["failed"], "", "", ""]
    weights, before, highest = found["weights"], found["before"], found["peak"]
    return [
        *(f"{value / 2**20:.0f}" for value in (weights, before, highest)),
        f"{highest / weights:.2f}",
        f"{(highest - before) / weights:.2f} × weights",
        f"{found['needs'] / weights:.2f} × weights" if found["needs"] else "",
    ]


def measured(model: str, prompts: Path, part: str, count: int) -> dict[str, int]:
    """Return the bytes of the weights, of the process before a part, and at its highest."""
    loaded, tokenizer = load_model(model), load_tokenizer(model)
    every = PromptSet.from_file(prompts)
    numbers = [row % len(every) for row in range(count)]
    if len(every) < count:
        raise SystemExit(f"{prompts} has {len(every)} prompts, not {count}")
    chosen = every.take(numbers)
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in loaded.parameters()}
    own = kernel_needs(loaded, encode(tokenizer, chosen).input_ids) if "kernel" in part else 0
    return_freed_memory()  # as `peak` does, or what it gives back would be counted as taken
    before = _resident()
    _, rose = peak(lambda: PARTS[part](loaded, tokenizer, chosen))
    whole = sum(weights.values())
    return {"weights": whole, "before": before, "peak": before + rose, "needs": own}


def kernel_needs(model: Any, prompts: Sequence[Sequence[int]], k: int = 10) -> int:
    """Return the least bytes that the kernel holds at one time, going block by block.

    In float32: the k gradients at the outputs of one block's matrices, what enters each block, the
    cotangents of a block and of the next.
    """
    block = decoder_list(model)[0]
    matrices = [m for m in block.modules() if isinstance(m, nn.Linear)]
    outputs = sum(m.out_features for m in matrices)
    config = model.config
    entering = config.hidden_size * (config.num_hidden_layers + 1 + 2 * k)
    return 4 * sum(map(len, prompts)) * (k * outputs + entering)


def _resident() -> int:
    """Return the process's resident memory now, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
