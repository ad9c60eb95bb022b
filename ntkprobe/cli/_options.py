"""Options of commands: from dataclasses of settings, with defaults from a file or a preset.

The fields of a frozen dataclass of settings are a command's options:

    @command_of(MeasureOptions)
    def measure(options: MeasureOptions) -> int: ...

gives a function whose signature, which typer reads, has one keyword for each field. A field's help
is what the class's docstring says of it under `Attributes:`; `Annotated[…, Flag(…)]` says the
rest. A field that is itself a dataclass contributes its own fields, and is made of them again.
"""

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
import yaml

from ..errors import UserError, one_line
from ..presets.settings import preset_settings
from ..settings import Flag, field_docs, parse_yaml

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
    """  # ruff: ignore[docstring-extraneous-exception]
    if path is None or ctx.resilient_parsing:
        return path
    _set_defaults(ctx, config_values(path, "top-k: 10"), f"--config {path}", first=True)
    return path


def config_values(path: Path, example: str) -> dict[str, Any]:
    """Return what a YAML file sets, by name with underscores.

    Args:
        path: `--config`.
        example: a line of such a file, for the message.

    Returns:
        The values.

    Raises:
        UserError: if the file cannot be read, or holds no settings.
    """
    try:
        values = parse_yaml(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path} holds no settings: write lines such as `{example}`")
    return with_underscores(values)


def with_underscores(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return values by name, as fields are called: `top-k` is `top_k`."""
    return {str(name).replace("-", "_"): value for name, value in values.items()}


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
    values = with_underscores(preset_settings(name, str(ctx.info_name)))
    _set_defaults(ctx, values, f"--preset {name}", first=False)
    return name


def _set_defaults(ctx: Any, named: dict[str, Any], source: str, *, first: bool) -> None:
    """Set defaults by option name; `first` ones go before those already set.

    Raises:
        UserError: if they are no options of the command.
    """
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


Options = TypeVar("Options")
Result = TypeVar("Result")


def command_of(
    kind: type[Options],
) -> Callable[[Callable[[Options], Result]], Callable[..., Result]]:
    """Return a decorator that makes a command of a function of one dataclass of settings.

    Args:
        kind: the frozen dataclass.

    Returns:
        What turns `f(options)` into a function of one keyword for each option, with the docstring
        of `f` as its help.
    """

    def decorate(function: Callable[[Options], Result]) -> Callable[..., Result]:
        def command(**typed: Any) -> Result:
            return function(built(kind, typed))

        parameters = list(_parameters(kind))
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        command.__doc__ = "\n\n".join(" ".join(each.split()) for each in paragraphs)
        command.__name__ = function.__name__
        command.__module__ = function.__module__
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def built(
    kind: type[Options], typed: dict[str, Any], base: Any = None, only: tuple[str, ...] = ()
) -> Options:
    """Return settings made of the values of options.

    Args:
        kind: the dataclass.
        typed: the values by option; what its nested settings need among them.
        base: settings from which fields without an option are taken; else these have the class's
            defaults.
        only: the fields that are options, if not all are.

    Returns:
        The settings; a value that is not allowed is a `UserError`.
    """
    values = {}
    for name, annotation, flag, default in _fields(kind, only=only):
        if _is_nested(annotation, flag):
            nested = default if is_dataclass(default) else None
            values[name] = built(annotation, typed, nested, flag.only)
        else:
            value = typed[flag.name or name]
            values[name] = flag.convert(value) if flag.convert else value
    return kind(**values) if base is None else replace(base, **values)


def _is_nested(annotation: Any, flag: Flag) -> bool:
    """Return whether a field is itself settings, whose fields are the options."""
    return is_dataclass(annotation) and flag.typed is None


def _fields(
    kind: Any, instance: Any = None, only: tuple[str, ...] = ()
) -> list[tuple[str, Any, Flag, Any]]:
    """Return name, type, flag and default of each field that is an option, or settings.

    Args:
        kind: the dataclass.
        instance: what the defaults are taken from, where they are not those of the class.
        only: the fields wanted, if not all are.
    """
    found: list[tuple[str, Any, Flag, Any]] = []
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        annotation, flag = hints[field.name], Flag()
        if get_origin(annotation) is Annotated:
            annotation, *about = get_args(annotation)
            flag = next((each for each in about if isinstance(each, Flag)), flag)
        default: Any = inspect.Parameter.empty
        if instance is not None:
            default = getattr(instance, field.name)
        elif field.default_factory is not MISSING:
            default = field.default_factory()
        elif field.default is not MISSING:
            default = field.default
        inner = _without_none(annotation)
        if flag.shown and (not only or field.name in only):
            nested = _is_nested(inner, flag)
            found.append((field.name, inner if nested else annotation, flag, default))
    return found


def _without_none(annotation: Any) -> Any:
    """Return the type of `… | None`."""
    kinds = [each for each in get_args(annotation) if each is not type(None)]
    return kinds[0] if isinstance(annotation, UnionType) and len(kinds) == 1 else annotation


def _parameters(
    kind: Any, instance: Any = None, only: tuple[str, ...] = ()
) -> list[inspect.Parameter]:
    """Return a keyword for each option, those of nested settings where these are."""
    docs = field_docs(kind)
    found = []
    for name, annotation, flag, default in _fields(kind, instance, only):
        if _is_nested(annotation, flag):
            empty = default is inspect.Parameter.empty
            found += _parameters(annotation, None if empty else default, flag.only)
            continue
        if flag.default is not None:
            default = flag.default
        typed = flag.typed or annotation
        option = _option(flag, flag.name or name, typed, default, docs.get(name, ""))
        found.append(
            inspect.Parameter(
                flag.name or name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[typed, option],
                default=default,
            )
        )
    return found


def _option(flag: Flag, name: str, typed: Any, default: Any, text: str) -> Any:
    """Return a field as typer's option or argument."""
    # A switch that is on by default has a --no-… as well.
    switch = (typed is bool and default is False) or typed == (bool | None)
    alone = (f"--{name.replace('_', '-')}",) if switch else ()
    words = flag.help or text
    help_text = (words[:1].upper() + words[1:]).replace("`", "").replace("[", r"\[")
    if flag.argument:
        return typer.Argument(help=help_text, metavar=flag.metavar)
    return typer.Option(
        *(flag.decls or alone),
        help=help_text,
        metavar=flag.metavar,
        min=flag.least,
        rich_help_panel=flag.panel,
        callback=flag.callback,
        is_eager=flag.callback is not None,
        show_default=True if flag.shows is None else flag.shows,
    )
