"""The kernel of models of real size on one GPU: seconds, memory, share of the floor, bf16's error.

`python benchmarks/kernel_gpu.py` builds Qwen2.5-1.5B and 7B with random weights in bfloat16, on the
GPU, and writes `kernel_gpu.md`; nothing is downloaded. Without a GPU it says so and does nothing
(`--device cpu --models tiny --prompts 8` tries the script out).
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from support import floor
from support.floor import now
from support.models import ragged_prompts, top_probes
from support.tables import machine, table, write
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from ntkprobe.estimators.gram import Gram
from ntkprobe.kernel import Probe, norms

CONFIGS: dict[str, dict[str, Any]] = {
    "1.5B": dict(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
    ),
    "7B": dict(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False,
    ),
    "tiny": dict(
        hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=1000, tie_word_embeddings=True,
    ),
}  # fmt: skip
AIMS = {"1.5B": 5.0, "7B": 30.0}
K = 10


@dataclass(frozen=True)
class Run:
    """One way of computing the kernel of one model: what it gave, took and held at most."""

    blocks: Tensor
    seconds: float
    bytes: int


def main() -> None:
    """Measure every model asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["1.5B", "7B"], choices=list(CONFIGS))
    parser.add_argument("--prompts", type=int, default=75)
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        return
    rows = [row for name in asked.models for row in measured(name, asked.device, asked.prompts)]
    header = ["model", "computed in", "seconds", "aim", "GiB", "/ floor", "error"]
    shown = table(header, rows)
    print(shown)
    if asked.device != "cuda":
        return
    where = f"{torch.cuda.get_device_name()}, {machine()}"
    said = (
        f"{asked.prompts} prompts of 20 to 30 tokens, k = {K}, all parameters, random weights held "
        "in bfloat16; float32 without TF32. The floor is the frozen passes plus the counted "
        "products at the measured rate, in the same dtype; the error is that of the worst block "
        f"against float32. {where}; by `python benchmarks/kernel_gpu.py`."
    )
    print(write(__file__, "# The kernel on one GPU", said, shown))


def measured(name: str, device: str, prompts: int) -> list[list[object]]:
    """Return the rows of one model: computed in float32, and in bfloat16."""
    model = build(name, device)
    ids = ragged_prompts(prompts, (20, 30), CONFIGS[name]["vocab_size"])
    probes = top_probes(model, ids, K)
    full, half = (run(Gram(dtype=d), model, probes) for d in (torch.float32, torch.bfloat16))
    error = float((norms(half.blocks - full.blocks) / norms(full.blocks)).max())
    least = {torch.bfloat16: least_seconds(model, probes)}
    least[torch.float32] = least_seconds(model.float(), probes)
    return [
        [
            name,
            str(dtype).removeprefix("torch."),
            f"{found.seconds:.2f}",
            AIMS.get(name, ""),
            f"{found.bytes / 2**30:.1f}",
            f"{found.seconds / least[dtype]:.2f}",
            off,
        ]
        for dtype, found, off in (
            (torch.float32, full, ""),
            (torch.bfloat16, half, f"{error:.1e}"),
        )
    ]


def build(name: str, device: str) -> nn.Module:
    """Return a model of random weights in bfloat16, made where it is to run."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return Qwen2ForCausalLM(Qwen2Config(**CONFIGS[name])).eval()
    finally:
        torch.set_default_dtype(before)


def run(estimator: Gram, model: nn.Module, probes: list[Probe]) -> Run:
    """Return the kernel, with the best time of three and the memory at its highest."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    best = float("inf")
    for _ in range(3):
        start = now()
        blocks = estimator(model, probes)
        best = min(best, now() - start)
    highest = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return Run(blocks.cpu(), best, highest)


def least_seconds(model: nn.Module, probes: list[Probe]) -> float:
    """Return the floor in the model's dtype: its frozen passes, and the products counted."""
    like = next(model.parameters())
    passes = min(floor.passes(model, probes) for _ in range(3))
    rate = floor.rate(4096, device=like.device, dtype=like.dtype)
    return passes + floor.multiply_adds(model, probes) / rate


if __name__ == "__main__":
    main()
