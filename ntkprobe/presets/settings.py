"""The shipped settings, by preset and command."""

from importlib.resources import files
from typing import Any

from ..errors import UserError
from ..settings import parse_yaml


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
    values = _read(name).get(command)
    if values is None:
        raise UserError(f"the preset {name!r} says nothing about {command}")
    return dict(values)


def preset_files(name: str, command: str) -> dict[str, Any]:
    """Return the files that a preset brings along for a command, which may be none."""
    return dict(_read(name).get("files", {}).get(command, {}))


def preset_about(name: str) -> str:
    """Return a line about a preset, which may be empty."""
    return str(_read(name).get("about", ""))


def _read(name: str) -> dict[str, Any]:
    """Return all that a preset says.

    Raises:
        UserError: if there is no such preset.
    """
    if name not in preset_names():
        raise UserError(f"no preset {name!r}: choose from {', '.join(preset_names())}")
    return dict(parse_yaml((files(__package__) / f"{name}.yaml").read_text("utf-8")))
