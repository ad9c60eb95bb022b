"""From a frozen dataclass of settings to a command: its fields are the options.

    @command_of(MeasureOptions)
    def measure(options: MeasureOptions) -> int: ...

gives a function whose signature, which typer reads, has one keyword for each field. A field's help
is what the class's docstring says of it under `Attributes:`; `Annotated[…, Flag(…)]` says the
rest. A field that is itself a dataclass contributes its own fields, and is made of them again.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, replace
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from ..settings import Flag, field_docs

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


def built(kind: type[Options], typed: dict[str, Any], base: Any = None) -> Options:
    """Return settings made of the values of options.

    Args:
        kind: the dataclass.
        typed: the values by option; what its nested settings need among them.
        base: settings from which fields without an option are taken; else these have the class's
            defaults.

    Returns:
        The settings; a value that is not allowed is a `UserError`.
    """
    values = {}
    for name, annotation, flag, default in _fields(kind):
        if flag is None:
            nested = default if is_dataclass(default) else None
            values[name] = built(annotation, typed, nested)
        else:
            value = typed[flag.name or name]
            values[name] = flag.convert(value) if flag.convert else value
    return kind(**values) if base is None else replace(base, **values)


def _fields(kind: Any, instance: Any = None) -> list[tuple[str, Any, Flag | None, Any]]:
    """Return name, type, flag and default of each field; the flag is None for nested settings.

    Args:
        kind: the dataclass.
        instance: what the defaults are taken from, where they are not those of the class.
    """
    found: list[tuple[str, Any, Flag | None, Any]] = []
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
        if not flag.shown:
            continue
        if is_dataclass(inner) and flag.typed is None:
            found.append((field.name, inner, None, default))
        else:
            found.append((field.name, annotation, flag, default))
    return found


def _without_none(annotation: Any) -> Any:
    """Return the type of `… | None`."""
    kinds = [each for each in get_args(annotation) if each is not type(None)]
    return kinds[0] if isinstance(annotation, UnionType) and len(kinds) == 1 else annotation


def _parameters(kind: Any, instance: Any = None) -> list[inspect.Parameter]:
    """Return a keyword for each option, those of nested settings where these are."""
    docs = field_docs(kind)
    found = []
    for name, annotation, flag, default in _fields(kind, instance):
        if flag is None:
            empty = default is inspect.Parameter.empty
            found += _parameters(annotation, None if empty else default)
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
        rich_help_panel=flag.panel,
        callback=flag.callback,
        is_eager=flag.callback is not None,
        show_default=True if flag.shows is None else flag.shows,
    )
