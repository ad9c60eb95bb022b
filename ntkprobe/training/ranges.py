"""Which numbers the settings of a stage may be, each refused in one line of its own."""

from collections.abc import Callable, Collection
from numbers import Integral, Real
from sys import float_info
from typing import Any

from ..errors import UserError

OPTIONS = {
    "per_device_train_batch_size": "--batch-size",
    "gradient_accumulation_steps": "--accumulate",
    "learning_rate": "--lr",
    "num_train_epochs": "--epochs",
}
"""Options that are not spelt as their field is."""


def _whole(least: int, most: float = float_info.max) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Integral) and least <= int(value) <= most


def _positive(value: Any) -> bool:
    return isinstance(value, Real) and 0 < float(value) <= float_info.max


def _save_steps(value: Any) -> bool:
    return _positive(value) and (value < 1 or float(value).is_integer())


POSITIVE, FROM_1 = "a number above 0", "a whole number, 1 or more"
ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "per_device_train_batch_size": (_whole(1), FROM_1),
    "gradient_accumulation_steps": (_whole(1), FROM_1),
    "max_length": (_whole(1), FROM_1),
    "learning_rate": (lambda value: value == 0 or _positive(value), "a number, 0 or more"),
    "num_train_epochs": (_positive, POSITIVE),
    "max_steps": (
        lambda value: value == -1 or _whole(1)(value),
        f"{FROM_1}, or leave it out for epochs",
    ),
    "seed": (_whole(0, 2**32 - 1), "a whole number from 0 to 4294967295"),
    "save_steps": (_save_steps, f"{FROM_1}, or a share of all steps below 1"),
    "lora_rank": (_whole(0), "a whole number, 0 or more"),
    "lora_alpha": (_positive, POSITIVE),
    "lora_dropout": (
        lambda value: value == 0 or (_positive(value) and value < 1),
        "a number from 0 to below 1",
    ),
    "toxic_ratio": (_positive, POSITIVE),
}
"""The test of a setting's value, and what it allows."""


def require_numbers(config: Any, declared: Collection[str]) -> None:
    """Raise for the first number of a configuration that is out of its range.

    Args:
        config: of a stage; what it lacks, or has as None, is not looked at.
        declared: fields that the stage declares itself, the ones with an option of another name.

    Raises:
        UserError: naming the setting, its option and what is allowed.
    """
    for name, (allows, text) in ALLOWED.items():
        value = getattr(config, name, None)
        if value is None or allows(value):
            continue
        option = f" ({OPTIONS[name]})" if name in OPTIONS and name in declared else ""
        raise UserError(f"{name}{option} is {value!r}: give {text}")
