"""Removes requests for remote code or hub kernels from a checkpoint's JSON files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from .headers import read_json

# In a file, these would run or fetch code; the caller's settings decide them, never the file.
DROPPED = frozenset(
    {
        "auto_map",
        "auto_mapping",
        "trust_remote_code",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "attn_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "experts_implementation",
        "use_kernels",
        "kernel_config",
        "transformers_weights",  # a file name, followed wherever it leads
        "megatron_config",
        "megatron_core",  # a module that peft would import
    }
)


DEQUANTISED = ("bitsandbytes", "gptq", "awq", "fp8")
"""Methods of quantisation that `quantised` makes ordinary weights of."""

MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What transformers raises for values in a configuration that it cannot make anything of."""

_NO_JSON = {name: float(name) for name in ("Infinity", "-Infinity", "NaN")}


def cleaned(value: Any) -> Any:
    """Return a JSON value without the keys that choose code, at any depth.

    transformers writes an infinite number as `{"__float__": "Infinity"}`: here it is one again.
    """
    if isinstance(value, dict) and list(value) == ["__float__"]:
        return _NO_JSON.get(str(value["__float__"]), value)
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items() if key not in DROPPED}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return value


def checked_config(path: Path, *, quantised: bool = False) -> dict[str, Any]:
    """Return a checkpoint's `config.json`, cleaned.

    Args:
        path: the file.
        quantised: allow quantised weights, for a reader that dequantises them itself.

    Returns:
        The configuration, safe to give to transformers.

    Raises:
        UserError: if it asks for a kernel from the hub, needs code of its own, or describes
            quantised weights.
    """
    from transformers import CONFIG_MAPPING

    config = read_json(path)
    for key, value in _choices(config):
        # transformers takes "owner/name" for a kernel to fetch and run, whatever the caller passes.
        if "implementation" in key and "/" in str(value):
            raise UserError(
                f"{path} asks for the kernel {value!r} ({key}): refused; remove that entry"
            )
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        own = "needs code of its own" if "auto_map" in config else "is not known to transformers"
        raise UserError(f"{path}: the architecture {kind!r} {own}: refused")
    if (packed := config.get("quantization_config")) and not quantised:
        method = packed.get("quant_method") if isinstance(packed, dict) else None
        known = method in DEQUANTISED
        way = f"`ntkprobe export --model {path.parent} --output-dir FOLDER` dequantises it" * known
        other = f"load it where transformers runs {method}, save model.dequantize()"
        raise UserError(
            f"{path}: quantised weights ({method}) have no gradient; measure the unquantised model,"
            f" or {way or other}, and name that folder"
        )
    return cleaned(config)


def _choices(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key that `cleaned` drops, with its value, at any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _choices(item)
    if isinstance(value, dict):
        for key, item in value.items():
            if key in DROPPED:
                yield key, item
            yield from _choices(item)
