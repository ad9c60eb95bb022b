"""`ntkprobe mitigate`: list the inference-time methods, and fit one to a model."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError, one_line
from ..settings import Flag, LoadSettings
from ._options import SOURCE, command_of

app = typer.Typer(add_completion=False, rich_markup_mode="rich", no_args_is_help=True)


@app.command("list")
def show() -> None:
    """Show every method with its source, and its settings with their defaults."""
    from .. import mitigations
    from ..mitigations.base import defaults_of
    from ..mitigations.storage import mitigation_class

    for name in mitigations.names():
        kind = mitigation_class(name)
        typer.echo(f"{name}  {kind.kind}  {kind.source}")
        settings = " ".join(f"{key}={_written(value)}" for key, value in defaults_of(kind).items())
        typer.echo(f"    {one_line(settings)}")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What `ntkprobe mitigate fit` is asked for.

    Attributes:
        method: one that `ntkprobe mitigate list` shows.
        model: a folder, a GGUF file, or a name on the hub.
        output_dir: the folder of the fitted method.
        prompts: to learn from; may be repeated.
        adapter: a LoRA adapter on the model.
        set: a method's setting.
        load: how the model is loaded.
        overwrite: replace what M holds.
    """

    method: Annotated[str, Flag(argument=True)]
    model: str
    output_dir: Annotated[Path, Flag(metavar="M")]
    prompts: Annotated[list[str] | None, Flag(metavar=SOURCE)] = None
    adapter: Annotated[Path | None, Flag(metavar="A")] = None
    set: Annotated[list[str] | None, Flag(metavar="NAME=VALUE")] = None
    load: LoadSettings = field(default_factory=LoadSettings)
    overwrite: bool = False


@app.command("fit")
@command_of(FitOptions)
def fit(options: FitOptions) -> None:
    """Fit a method to a model and save it: settings as JSON, what it learned as safetensors.

    The prompts are of the groups that the method learns from: toxic, normal, seemingly_toxic.
    """  # ruff: ignore[docstring-missing-exception]
    from .. import mitigations
    from ..checkpoints import base_and_adapter, load_model, load_tokenizer
    from ..prompts.prompt_set import PromptSet
    from ..prompts.rendering import current_day, dated
    from ._options import quieten

    quieten()
    method = _configured(options)
    folder = options.output_dir
    _require_place(folder, options.overwrite)
    files = options.prompts or []
    if not files and method.kind == "steering":
        raise UserError(f"{options.method} learns from prompts: give --prompts FILE or FILE=GROUP")
    prompts = PromptSet.from_files(files) if files else PromptSet(())
    named, adapter = base_and_adapter(options.model, options.adapter)
    base = load_model(named, options.load)
    tokenizer = load_tokenizer(named, local=False)
    with dated(current_day()), _adapted(base, adapter) as model:  # one day, also past midnight
        fitted = method.fit(model, tokenizer, prompts)
        day = _template_day(method, tokenizer) if files else None
    mitigations.save(fitted, folder, template_date=day)
    if report := getattr(fitted, "report", None):
        for name, found in report.items():
            print(f"  {name}: {_one_line_of(found)}", file=sys.stderr)
    given = f"{_where(options)} --prompts FILE --mitigation {folder}"
    typer.echo(one_line(f"fitted: {folder}; next: ntkprobe measure {given}"))


def _template_day(method: Any, tokenizer: Any) -> str | None:
    """Return the day that a method's template prints; print what should be known about it."""
    from ..prompts.templates import resolve_template

    template = resolve_template(tokenizer, getattr(method, "template", "auto"))
    for line in template.remarks(tokenizer):
        print(one_line(line), file=sys.stderr)
    return template.day


def _configured(options: FitOptions) -> Any:
    """Return the method with the settings given."""
    from ..mitigations.base import checked_settings, defaults_of
    from ..mitigations.storage import mitigation_class

    kind = mitigation_class(options.method)
    defaults = defaults_of(kind)
    usual = {name: _written(v) for name, v in defaults.items() if v not in (None, "", ())}
    example = next((f"{name}={value}" for name, value in usual.items()), "NAME=VALUE")
    given = dict(_assignment(text, defaults, example) for text in options.set or [])
    return kind(**checked_settings(kind, given))


def _assignment(text: str, defaults: dict[str, Any], example: str) -> tuple[str, Any]:
    """Return a setting and its value: YAML, but what was typed where the setting is a text.

    YAML would make a mapping of `system=Note: be kind`, and nothing of `system=`.
    """
    from ._train_settings import assignment

    name, equals, typed = text.partition("=")
    name, typed = name.strip().replace("-", "_"), typed.strip()
    quoted = typed[:1] in ("'", '"')
    if equals and isinstance(defaults.get(name), str) and not quoted:
        return name, typed
    return assignment(text, example)


def _require_place(folder: Path, overwrite: bool) -> None:
    """Raise if the folder holds a mitigation that is not to be replaced, or something else.

    Raises:
        UserError: saying which.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: choose another --output-dir")
    held = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if held - {"mitigation.json", "mitigation.safetensors"}:
        raise UserError(f"{folder} holds something else: choose another --output-dir")
    if held and not overwrite:
        raise UserError(f"{folder} holds a mitigation: choose another --output-dir, or --overwrite")


def _adapted(base: Any, adapter: Path | None) -> Any:
    """Return the context of the base with an adapter merged into it, if there is one."""
    from contextlib import nullcontext

    from ..checkpoints import adapted

    return nullcontext(base) if adapter is None else adapted(base, adapter)


def _where(options: FitOptions) -> str:
    """Return the options of `measure` for the same model: an adapter is a checkpoint of a run."""
    named, adapter = options.model, options.adapter
    if (Path(named) / "adapter_config.json").is_file():
        return f"--ckpt-dir {named}"
    return f"--model {named}" + (f" --ckpt-dir {adapter}" if adapter else "")


def _written(value: Any) -> str:
    """Return a value as --set takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_line_of(found: dict[str, Any]) -> str:
    """Return what is known about a vector."""
    return ", ".join(f"{name} {_written(value)}" for name, value in found.items())
