"""The shipped settings, by preset and command."""

from importlib.resources import files
from typing import Any

import yaml

from ..errors import UserError


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(
        file.name.removesuffix(".yaml")
        for file in files(__package__).iterdir()
        if file.name.endswith(".yaml")
    )


def preset_settings(name: str, command: str) -> dict[str, Any]:
    """Return the settings that a preset has for a command.

    Args:
        name: such as `qwen2.5-1.5b`.
        command: such as `dcr`.

    Returns:
        Values by the name of the setting.

    Raises:
        UserError: if there is no such preset, or it says nothing about the command.
    """
    if name not in preset_names():
        raise UserError(f"no preset {name!r}: choose from {', '.join(preset_names())}")
    values = yaml.safe_load((files(__package__) / f"{name}.yaml").read_text("utf-8")).get(command)
    if values is None:
        raise UserError(f"the preset {name!r} says nothing about {command}")
    return dict(values)
