"""The least that an exact reverse-mode kernel can take: its passes, and its products counted."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ntkprobe.kernel import Probe, last_logits


def passes(model: nn.Module, probes: Sequence[Probe]) -> float:
    """Return the seconds of a forward pass of all prompts and k backward ones, weights frozen."""
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    frozen = [p for p in model.parameters() if p.requires_grad]
    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        start = now()
        logits = last_logits(model, [probe.input_ids for probe in probes])
        read = torch.stack([p.read(z) for p, z in zip(probes, logits, strict=True)])
        for value in read.sum(0):
            torch.autograd.grad(value, embedded[-1], retain_graph=True)
        return now() - start
    finally:
        handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)


def multiply_adds(model: nn.Module, probes: Sequence[Probe]) -> float:
    """Return the multiply-adds of all products of matrices' gradients, half of them by symmetry.

    Each in its cheapest order of the three known: ghost, mixed, explicit. In
    the last block only keys and values act at more than the last position. The two ends of the
    model and its vectors count nothing: their products are small.
    """
    lengths = [len(probe.input_ids) for probe in probes]
    k, n = len(probes[0]), len(probes)
    last = f".{model.config.num_hidden_layers - 1}."
    total = 0.0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is model.get_output_embeddings():
            continue
        short = last in name and not name.endswith(("k_proj", "v_proj"))
        rows = n if short else sum(lengths)
        total += _cheapest(rows, n, k, module.in_features, module.out_features)
    return total


def _cheapest(rows: int, n: int, k: int, i: int, o: int) -> float:
    """Return the least multiply-adds for a matrix from i to o."""
    return min(
        (rows**2 * i + rows**2 * k**2 * o) / 2,
        (rows**2 * i + rows**2 * k * o + rows * n * k**2 * o) / 2,
        rows * k * i * o + (n * k) ** 2 * i * o / 2,
    )


def rate(
    size: int = 2048,
    repeats: int = 5,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> float:
    """Return the machine's multiply-adds a second, in a product of square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    best = float("inf")
    for _ in range(repeats):
        start = now()
        a @ b
        best = min(best, now() - start)
    return size**3 / best


def now() -> float:
    """Return the time at which everything asked of the machine is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
