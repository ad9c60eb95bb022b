"""Which model is in memory: digests of what it computes with, where no file says it."""

from hashlib import sha256

import torch
from torch import Tensor, nn

from .identification import settings_digest

SAMPLE = 4096  # values of each parameter that count in `loaded_identity`, at least if it has them

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def loaded_identity(model: nn.Module) -> str:
    """Return the identity of a model in memory that was not saved, as `identity` of a folder.

    Args:
        model: one that is trained, adapters included.

    Returns:
        A hexadecimal SHA-256 of its parameters (names, shapes, some values), and behind a hyphen 16
        characters of that of its settings. It is not that of a folder with the same weights.
    """
    digest = sha256()
    for name, value in model.named_parameters():
        flat = value.detach().reshape(-1)
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(flat[:: max(1, len(flat) // SAMPLE)].float().cpu().numpy().tobytes())
    adapters = getattr(model, "peft_config", {})
    settings = [getattr(model, "config", None), *(adapters[name] for name in sorted(adapters))]
    said = [each.to_dict() for each in settings if hasattr(each, "to_dict")]
    return f"{digest.hexdigest()}-{settings_digest(said)}"


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """Return a hexadecimal digest of every bit of a model's parameters and buffers.

    Args:
        model: the model; which of its tensors are tied counts, too.

    Returns:
        Two models have the same one if all their tensors are equal. Each tensor goes in as the sum
        of its bit patterns, one pass over it where it lies: that shows a change, and is no
        protection against someone who wants to hide one.
    """
    parameters = model.named_parameters(remove_duplicate=False)
    buffers = model.named_buffers(remove_duplicate=False)
    numbers: dict[int, int] = {}
    digest = sha256()
    for name, tensor in (*parameters, *buffers):
        number = numbers.setdefault(id(tensor), len(numbers))
        shape = (tensor.dtype, tuple(tensor.shape), tensor.device.type)
        digest.update(repr((name, number, *map(str, shape), _bits(tensor))).encode())
    return digest.hexdigest()


def _bits(tensor: Tensor) -> int:
    """Return the sum of a tensor's bit patterns, as whole numbers modulo 2⁶⁴."""
    if tensor.is_meta or tensor.numel() == 0:
        return 0
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return int(plain.detach().view(_INTEGERS[plain.element_size()]).sum(dtype=torch.int64))
