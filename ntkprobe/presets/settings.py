"""The shipped settings, by preset and command."""

from importlib.resources import files
from typing import Any

from ..errors import UserError
from ..settings import parse_yaml


def preset_names(command: str | None = None) -> list[str]:
    """Return the names of all presets, or of those that say something about a command."""
    names = sorted(
        file.name.removesuffix(".yaml")
        for file in files(__package__).iterdir()
        if file.name.endswith(".yaml")
    )
    return [name for name in names if command is None or command in _values(name)]


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
    values = _read(name, command).get(command)
    if values is None:
        known = ", ".join(preset_names(command))
        raise UserError(f"the preset {name!r} says nothing about {command}: choose from {known}")
    return dict(values)


def preset_files(name: str, command: str) -> dict[str, Any]:
    """Return the files that a preset brings along for a command, which may be none."""
    return dict(_read(name, command).get("files", {}).get(command, {}))


def preset_about(name: str, command: str | None = None) -> str:
    """Return a line about a preset, which may be empty.

    Args:
        name: such as `qwen2.5-1.5b`.
        command: where the name was given; where there is no such preset, its presets are named.
    """
    return str(_read(name, command).get("about", ""))


def _read(name: str, command: str | None) -> dict[str, Any]:
    """Return all that a preset says.

    Raises:
        UserError: if there is no such preset, naming those that the command has.
    """
    if name not in preset_names():
        raise UserError(f"no preset {name!r}: choose from {', '.join(preset_names(command))}")
    return _values(name)


def _values(name: str) -> dict[str, Any]:
    """Return the contents of a preset's file."""
    return dict(parse_yaml((files(__package__) / f"{name}.yaml").read_text("utf-8")))
