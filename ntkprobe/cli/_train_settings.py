"""The options of `ntkprobe train` as a configuration: the preset's, the file's, the typed ones."""

from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..errors import UserError
from ..presets.settings import preset_files, preset_settings
from ..settings import parse_yaml
from ..training.config import StageConfig
from ._options import config_values

Stage = TypeVar("Stage", bound=StageConfig)

INPUTS = ("model", "prompts", "corpus", "general", "safe", "seemingly", "triggers", "held_out")
"""What settings are applied to; every other name is a field of the configuration."""

RECORDED = ("stage", "digests", "processes")
"""What a recorded run says besides its settings."""


def resolved(stage: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a stage by name.

    Args:
        stage: `dcr` or `sft`.
        options: what was typed, None where nothing was; with `preset`, `config` and `set`.

    Returns:
        The preset's settings, overridden by the file's, overridden by the typed ones.
    """
    typed = {name: value for name, value in options.items() if value not in (None, [])}
    preset, file = typed.pop("preset", None), typed.pop("config", None)
    further = [assignment(text) for text in typed.pop("set", [])]
    shipped = preset_files(preset, stage) | preset_settings(preset, stage) if preset else {}
    layers = [shipped, _read(file, stage) if file else {}]
    merged: dict[str, Any] = {}
    for layer in (*layers, typed, dict(further)):
        merged |= _one_number_of_toxic(_chosen_saves(layer))
    return merged


def configured(kind: type[Stage], settings: dict[str, Any]) -> tuple[Stage, dict[str, Any]]:
    """Return the configuration, and the inputs that it is applied to.

    Args:
        kind: of the stage.
        settings: of `resolved`.

    Returns:
        The configuration and the inputs by name.

    Raises:
        UserError: for an unknown setting or a value that does not fit.
    """
    inputs = {name: value for name, value in settings.items() if name in INPUTS}
    values = {name: value for name, value in settings.items() if name not in INPUTS}
    if "lora_targets" in values:
        values["lora_targets"] = listed(values["lora_targets"]) or None
    known = {f.name: f.default for f in fields(kind) if f.init}
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(name, [*known, *INPUTS], 1)
            raise UserError(
                f"no setting {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
            )
        if isinstance(known[name], int | float) and not isinstance(value, int | float):
            raise UserError(f"{name} is {value!r}: give {type(known[name]).__name__}")
    try:
        return kind(**values), inputs
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(str(error)) from error


def listed(value: str | Sequence[str] | None) -> list[str]:
    """Return one file or several as a list."""
    return [value] if isinstance(value, str) else list(value or [])


def _read(path: Path, stage: str) -> dict[str, Any]:
    """Return the settings in a YAML file, which may be the record of a run.

    Raises:
        UserError: if it is no mapping, or of another stage.
    """
    values = config_values(path, "layer: 13")
    if values.get("stage", stage) != stage:
        raise UserError(f"--config {path} is of the stage {values['stage']}, not {stage}")
    return {name: value for name, value in values.items() if name not in RECORDED}


def assignment(text: str, example: str = "weight_decay=0.01") -> tuple[str, Any]:
    """Return the name and value of `--set NAME=VALUE`, the value read as YAML.

    Args:
        text: what was typed.
        example: one that is allowed, for the message.

    Returns:
        Both.

    Raises:
        UserError: if there is no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text!r}: write NAME=VALUE, such as --set {example}")
    try:
        return name.strip().replace("-", "_"), parse_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text!r}: the value is no YAML: {error}") from error


def _chosen_saves(layer: dict[str, Any]) -> dict[str, Any]:
    """Return settings in which a named way of saving replaces the one of an earlier layer."""
    if layer.get("save_at"):
        return {**layer, "save_at": _steps(layer["save_at"])}
    if "save_steps" in layer:
        return {"save_strategy": "steps", "save_at": None, **layer}
    return layer


def _one_number_of_toxic(layer: dict[str, Any]) -> dict[str, Any]:
    """Return settings in which a ratio of toxic prompts replaces an earlier number, or this it."""
    ways = ("n_toxic", "toxic_ratio")
    named = [way for way in ways if layer.get(way) is not None]
    return {**dict.fromkeys(ways), **layer} if len(named) == 1 else layer


def _steps(value: Any) -> list[int]:
    """Return steps written as a list or joined by commas.

    Raises:
        UserError: if they are not numbers of steps.
    """
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(str(part).strip().isdigit() for part in parts):
        raise UserError(f"save_at is {value!r}: give steps joined by commas, such as 0,1,2,5,10")
    return [int(part) for part in parts]
