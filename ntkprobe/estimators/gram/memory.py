"""How much there is room for."""

from collections.abc import Sequence

import psutil
import torch
from torch import Tensor, nn

from ...kernel import Probe
from .passes import Factors, Route

TOKENS = {"cpu": 3072, "cuda": 4096}  # in one pass: many prompts make products that meet themselves
_ALIKE = {
    "cpu": 1280,
    "cuda": 4096,
}  # enough of those, if they are many: the fewer, the less padding
_MANY = 32
_SHARE = 0.4  # of the memory that is free


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return int(psutil.virtual_memory().available)


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that there was no memory left, on a GPU or on a CPU."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or "can't allocate memory" in str(error)


def fits(factors: Factors, tiles: int) -> bool:
    """Return whether as many tiles' factors as this one's may be kept for the stage."""
    tensors = [x for uses in factors.values() for f in uses for x in vars(f).values()]
    held = [x for x in tensors if isinstance(x, Tensor)]
    if not held or tiles == 1:
        return True
    total = tiles * sum(x.numel() * x.element_size() for x in held)
    return total < _SHARE * free_bytes(held[-1].device)


def prompts_at_a_time(route: Route, probes: Sequence[Probe]) -> int:
    """Return how many prompts to pass at once: enough to be fast, few enough for a block to fit."""
    device = next(route.model.parameters()).device
    longest = max(len(p.input_ids) for p in probes)
    tokens = TOKENS.get(device.type, TOKENS["cpu"])
    widest = max(_outputs(block) for block in route.blocks or [route.model])
    room = _SHARE * free_bytes(device) / (4 * widest * (len(probes[0]) + 4))
    alike = max(_MANY * longest, _ALIKE.get(device.type, _ALIKE["cpu"]))
    wanted = max(1, int(min(tokens, alike, room) / longest))
    tiles = -(-len(probes) // wanted)
    return -(-len(probes) // tiles)


def _outputs(module: nn.Module) -> int:
    """Return about how many numbers a module's matrices give out for one token."""
    return max(sum(p.shape[-2] for p in module.parameters() if p.dim() > 1), 1)
