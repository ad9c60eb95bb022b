"""What several commands share: defaults from a file or a preset, lines of progress, quiet."""

import logging
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import UserError, one_line
from ..presets.settings import preset_settings
from ..settings import parse_yaml

if TYPE_CHECKING:
    from ..stages import Stage

SOME = "FILE[:COLUMN=VALUE,…]"
"""How a file of prompts, or some of its rows, is named (`prompt_selections`)."""

SOURCE = f"{SOME}[=GROUP]"
"""The same where prompts are in groups."""


def named_stages(
    stages: list[str], templates: list[str] | None, model: str | None
) -> "tuple[Stage, ...]":
    """Return the stages of `--stage` and `--template`, with `package:…` models where they are.

    Args:
        stages: as `NAME=MODEL`, in order.
        templates: of all, or as `NAME=TEMPLATE` of one.
        model: `--model`, the base of those that are adapters.

    Raises:
        UserError: if there is a base, and no adapter.
    """
    from ..stages import parse_stages
    from ..training.runs import located

    found = parse_stages(stages, templates or ())
    if model is not None and not any(stage.adapter for stage in found):
        raise UserError(
            f"--model {model} is the base below adapters, and no --stage is one: give a base that "
            "is measured as a stage of its own"
        )
    packaged = [stage.model.startswith("package:") for stage in found]
    return tuple(
        replace(stage, model=located(stage.model)) if inside else stage
        for stage, inside in zip(found, packaged, strict=True)
    )


def config_defaults(ctx: Any, path: Path | None) -> Path | None:
    """Take the defaults of this command's options from a YAML file; typed options beat them.

    Args:
        ctx: the command's context.
        path: `--config`.

    Returns:
        The path.

    Raises:
        UserError: if the file cannot be read or names no option of this command.
    """
    if path is None or ctx.resilient_parsing:
        return path
    try:
        values = parse_yaml(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read as YAML: {error}") from error
    _set_defaults(ctx, values, f"--config {path}", first=True)
    return path


def preset_defaults(ctx: Any, name: str | None) -> str | None:
    """Take the defaults of this command's options from a preset; a file and typed ones beat them.

    Args:
        ctx: the command's context.
        name: `--preset`.

    Returns:
        The name; one of no preset for this command is a `UserError`.
    """
    if name is None or ctx.resilient_parsing:
        return name
    values = preset_settings(name, str(ctx.info_name))
    _set_defaults(ctx, values, f"--preset {name}", first=False)
    return name


def _set_defaults(ctx: Any, values: Any, source: str, *, first: bool) -> None:
    """Set defaults by option name; `first` ones go before those already set.

    Raises:
        UserError: if they are no options of the command.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source} holds no options: write lines such as `top-k: 10`")
    named = {str(key).replace("-", "_"): value for key, value in values.items()}
    known = {parameter.name for parameter in ctx.command.params} - {"config", "preset"}
    if unknown := sorted(set(named) - known):
        raise UserError(f"{source} sets {unknown[0]!r}, which is no option of {ctx.info_name}")
    several = {each.name for each in ctx.command.params if getattr(each, "multiple", False)}
    for name in several & set(named):  # one value of an option that may be repeated
        if isinstance(named[name], str):
            named[name] = [named[name]]
    older = dict(ctx.default_map or {})
    ctx.default_map = {**older, **named} if first else {**named, **older}


def report_line(message: str) -> None:
    """Print a line about what is going on, on standard error."""
    print(one_line(message), file=sys.stderr)


def quieten() -> None:
    """Keep the libraries from talking over our progress bar."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", FutureWarning)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("peft", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
