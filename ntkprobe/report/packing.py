"""Encodes a tree of tables and arrays as text in an HTML page that can be nothing but data.

Arrays are kept as numbers of their own width: the bytes of one significance together, deflated,
base64. A page decodes them with the browser's `DecompressionStream`; every other value is JSON
whose `<`, `>` and `&` are escaped, so that no text can end the element that holds it.
"""

import base64
import json
import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MISSING_INT16 = -32768
_TYPES = {"<f4": "f4", "<i4": "i4", "<i2": "i2", "|u1": "u1"}


@dataclass(frozen=True)
class Scaled:
    """An array kept in 16 bits a value, to 1 in 32,767 of its largest absolute value."""

    values: np.ndarray


@dataclass(frozen=True)
class Packed:
    """A tree as text.

    Attributes:
        index: the tree as JSON; an array is replaced by `{"block": NAME, type, shape, scale}`.
        blocks: the arrays by that name, as base64.
    """

    index: str
    blocks: dict[str, str] = field(default_factory=dict)


def pack(tree: dict[str, Any]) -> Packed:
    """Return a tree of dictionaries, lists, numbers, texts and arrays as text.

    Args:
        tree: with string keys; a missing number is None or NaN.

    Returns:
        The text, pure ASCII.
    """
    blocks: dict[str, str] = {}
    return Packed(script_json(_walked(tree, blocks)), blocks)


def script_json(value: Any) -> str:
    """Return JSON that neither ends a script element nor begins one."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII: lone surrogates too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _walked(value: Any, blocks: dict[str, str]) -> Any:
    """Return a value as JSON knows it, its arrays put into `blocks`."""
    if isinstance(value, dict):
        return {str(key): _walked(item, blocks) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_walked(item, blocks) for item in value]
    if isinstance(value, np.ndarray | Scaled):
        return _block(value, blocks)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _block(value: np.ndarray | Scaled, blocks: dict[str, str]) -> dict[str, Any]:
    """Return the entry of an array in the index; the array itself is put into `blocks`."""
    array, scale = _in_16_bits(value.values) if isinstance(value, Scaled) else (value, 1.0)
    name = f"block-{len(blocks)}"
    kind = _TYPES[array.dtype.newbyteorder("<").str if array.dtype.itemsize > 1 else "|u1"]
    by_place = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.dtype.itemsize).T
    blocks[name] = base64.b64encode(zlib.compress(by_place.tobytes(), 6)).decode()
    return {"block": name, "type": kind, "shape": list(array.shape), "scale": scale}


def _in_16_bits(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return integers and their unit; NaN becomes `MISSING_INT16`."""
    known = np.isfinite(values)
    largest = float(np.abs(values[known]).max(initial=0.0))
    scale = largest / 32767 or 1.0
    whole = np.full(values.shape, MISSING_INT16, "<i2")
    whole[known] = np.rint(values[known] / scale).astype("<i2")
    return whole, scale
