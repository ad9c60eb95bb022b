"""Quantised weights of an ordinary folder, dequantised: a matrix from its packed parts.

What comes out is the dequantised model, not the one that was quantised. It is what an adapter was
trained over (QLoRA), up to the rounding of activations, which LLM.int8 and fp8 do as well.
Formats: bitsandbytes' 4 and 8 bits (its `QuantState`), GPTQ (AutoGPTQ's packing), AWQ (AutoAWQ's
GEMM packing), block-wise fp8 (DeepSeek-V3's `weight_scale_inv`). All others are named in one line.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, one_line
from ..storage import write_json
from .completeness import FULL, weight_files
from .headers import Incomplete, read_json, regular_file
from .pins import JSON_FILES, PLAIN_FILES
from .safeguards import checked_config

Parts = Mapping[str, Tensor]
"""The tensors of one module, by the last part of their names (`weight`, `qweight`, `scales`, …)."""


@dataclass(frozen=True)
class Quantisation:
    """What `config.json` says of how the weights of a folder are packed.

    Attributes:
        method: such as `bitsandbytes`.
        settings: its `quantization_config`.
    """

    method: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "Quantisation | None":
        """Return that of a folder; None where its weights are ordinary ones."""
        try:
            settings = read_json(folder / "config.json").get("quantization_config")
        except (Incomplete, UserError):
            return None
        if not settings:
            return None
        named = settings.get("quant_method") if isinstance(settings, dict) else None
        return cls(str(named), settings if isinstance(settings, dict) else {})


def dequantised(folder: Path, how: Quantisation) -> dict[str, Tensor]:
    """Return the weights of a folder by name, packed ones as float32 matrices.

    Args:
        folder: a model, whose files are checked to be whole.
        how: its quantisation.

    Returns:
        The tensors that the model has without quantisation.

    Raises:
        UserError: for a format that is not known, or parts that do not fit together.
    """
    from safetensors.torch import load

    if how.method not in _FORMATS:
        raise UserError(
            f"{folder} is quantised by {how.method}, which is not read here: load it where "
            "transformers runs that, and save model.dequantize() with save_pretrained"
        )
    form = _FORMATS[how.method]
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= load(file.read_bytes())
    for module, parts in _by_module(tensors, form.parts).items():
        if not any(set(marks) <= set(parts) for marks in form.marks):
            continue  # it is not packed
        try:
            matrix = form.unpack(parts, how.settings)
        except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"{folder}: {module} cannot be dequantised: {one_line(error)}"
            ) from error
        for part in parts:
            del tensors[f"{module}.{part}"]
        tensors[f"{module}.weight"] = matrix.contiguous()
    return tensors


def write_dequantised(folder: Path, how: Quantisation, output: Path) -> Path:
    """Write a folder's model without quantisation, its tokenizer beside it.

    Args:
        folder: the quantised model.
        how: its quantisation.
        output: a folder that is there and empty.

    Returns:
        `output`.
    """
    from safetensors.torch import save_file

    config = checked_config(folder / "config.json", quantised=True)
    del config["quantization_config"]
    save_file(dequantised(folder, how), output / FULL, metadata={"format": "pt"})
    write_json(output / "config.json", config)
    for name in (*JSON_FILES, *PLAIN_FILES):
        if (folder / name).is_file() and name != "adapter_config.json":
            regular_file(folder / name)
            shutil.copyfile(folder / name, output / name)
    return output


def _by_module(tensors: Mapping[str, Tensor], parts: tuple[str, ...]) -> dict[str, dict]:
    """Return the tensors that may be parts of a packed matrix, by module and part."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        for part in parts:
            if name.endswith(f".{part}"):
                found.setdefault(name[: -len(part) - 1], {})[part] = tensor
    return found


def _bitsandbytes(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    return _int8(parts) if "SCB" in parts else _four_bits(parts)


def _int8(parts: Parts) -> Tensor:
    """Return the matrix of LLM.int8: a row's largest absolute value is 127.

    Raises:
        ValueError: for a layout of tiles.
    """
    if int(parts.get("weight_format", torch.zeros(()))) != 0:
        raise ValueError("its weights are in tiles, which depend on the GPU: save it anew")
    return parts["weight"].float() * (parts["SCB"].float() / 127)[:, None]


def _four_bits(parts: Parts) -> Tensor:
    """Return the matrix of NF4 or FP4: 16 values times the largest absolute value of a block."""
    states = [tensor for name, tensor in parts.items() if ".quant_state." in name]
    about = json.loads(bytes(states[0].tolist()))
    scales = parts["weight.absmax"]
    if "weight.nested_absmax" in parts:  # the scales are quantised themselves
        inner = parts["weight.nested_quant_map"].float()[scales.long()]
        blocks = parts["weight.nested_absmax"].float()
        wide = blocks.repeat_interleave(int(about["nested_blocksize"]))[: len(inner)]
        scales = inner * wide + float(about["nested_offset"])
    packed = parts["weight"].flatten().view(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()
    values = parts["weight.quant_map"].float()[codes.long()]
    shape = [int(size) for size in about["shape"]]
    count = shape[0] * shape[1]
    wide = scales.float().repeat_interleave(int(about["blocksize"]))
    return (values[:count] * wide[:count]).reshape(shape)


def _gptq(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """Return the matrix of GPTQ: codes along the inputs, a scale and a zero for each group.

    Raises:
        ValueError: for codes that do not fill 32 bits, or zero points that can be read in two ways.
    """
    bits = int(settings["bits"])
    if bits not in (2, 4, 8):
        raise ValueError(f"codes of {bits} bits")
    codes = _unpacked(parts["qweight"], bits, 0)  # [inputs, outputs]
    zeros = _unpacked(parts["qzeros"], bits, 1)  # [groups, outputs]
    # The first format stores a zero less one; of 0, which wraps around, programs make 0 or 2^bits.
    if settings.get("checkpoint_format", "gptq") != "gptq_v2":
        if int(zeros.max()) == 2**bits - 1:
            raise ValueError("a zero point that programs read differently: save it as gptq_v2")
        zeros = zeros + 1
    scales = parts["scales"].float()
    size = -(-codes.shape[0] // scales.shape[0])
    group = torch.arange(codes.shape[0]) // size
    group = parts["g_idx"].long() if "g_idx" in parts else group
    return (scales[group] * (codes - zeros[group]).float()).T


def _awq(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """Return the matrix of AWQ's GEMM packing: eight codes of four bits, even columns first.

    Raises:
        ValueError: for another packing.
    """
    if int(settings.get("bits", 4)) != 4 or settings.get("version", "gemm").lower() != "gemm":
        raise ValueError("a packing other than 4 bits for GEMM")
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    codes, zeros = (
        _unpacked(parts[name], 4, 1).unflatten(1, (-1, 8))[..., order].flatten(1)
        for name in ("qweight", "qzeros")
    )
    size = codes.shape[0] // zeros.shape[0]
    group = torch.arange(codes.shape[0]) // size
    return (parts["scales"].float()[group] * (codes - zeros[group]).float()).T


def _fp8(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """Return the matrix of block-wise fp8, a scale for each block of rows and columns.

    Raises:
        ValueError: for weights that are no fp8.
    """
    weight, scales = parts["weight"], parts["weight_scale_inv"].float()
    if weight.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
        raise ValueError(f"weights of {weight.dtype}")
    if not parts["weight_scale_inv"].is_floating_point():
        raise ValueError(f"scales of {parts['weight_scale_inv'].dtype}")
    if scales.numel() == 1:
        return weight.float() * scales.flatten()
    rows, columns = (int(size) for size in settings["weight_block_size"])
    wide = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    if wide.shape[0] < weight.shape[0] or wide.shape[1] < weight.shape[1]:
        raise ValueError(f"scales of {tuple(scales.shape)} for {tuple(weight.shape)} weights")
    return weight.float() * wide[: weight.shape[0], : weight.shape[1]]


def _unpacked(packed: Tensor, bits: int, dim: int) -> Tensor:
    """Return codes packed into 32-bit integers along a dimension, the lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = (packed.to(torch.int32).unsqueeze(dim + 1) >> _along(shifts, dim + 1)) & (2**bits - 1)
    return codes.flatten(dim, dim + 1).to(torch.int32)


def _along(shifts: Tensor, dim: int) -> Tensor:
    return shifts.reshape([-1 if place == dim else 1 for place in range(3)])


@dataclass(frozen=True)
class _Format:
    """How a method packs a matrix.

    Attributes:
        unpack: makes the matrix of a module's parts and the method's settings.
        parts: the ends of the names that belong to a packed matrix.
        marks: those that a packed matrix has, in one of these ways.
    """

    unpack: Callable[[Parts, Mapping[str, Any]], Tensor]
    parts: tuple[str, ...]
    marks: tuple[tuple[str, ...], ...]


_STATE = "weight.quant_state.bitsandbytes__"
_FORMATS = {
    "bitsandbytes": _Format(
        _bitsandbytes,
        (
            "weight",
            "SCB",
            "weight_format",
            "weight.absmax",
            "weight.quant_map",
            "weight.nested_absmax",
            "weight.nested_quant_map",
            f"{_STATE}nf4",
            f"{_STATE}fp4",
        ),
        (("weight", "SCB"), ("weight", "weight.absmax", "weight.quant_map")),
    ),
    "gptq": _Format(
        _gptq, ("qweight", "qzeros", "scales", "g_idx"), (("qweight", "qzeros", "scales"),)
    ),
    "awq": _Format(_awq, ("qweight", "qzeros", "scales"), (("qweight", "qzeros", "scales"),)),
    "fp8": _Format(_fp8, ("weight", "weight_scale_inv"), (("weight", "weight_scale_inv"),)),
}
