"""`ntkprobe mitigate`: list the inference-time methods, and fit one to a model."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError, one_line
from ._options import SOURCE

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.command("list")
def show() -> None:
    """Show every method with its source, and its settings with their defaults."""
    from .. import mitigations
    from ..mitigations.settings import defaults_of
    from ..mitigations.storage import mitigation_class

    for name in mitigations.names():
        kind = mitigation_class(name)
        typer.echo(f"{name}  {kind.kind}  {kind.source}")
        settings = " ".join(f"{key}={_written(value)}" for key, value in defaults_of(kind).items())
        typer.echo(f"    {one_line(settings)}")


@app.command("fit")
def fit(
    method: Annotated[str, typer.Argument(help="One that ntkprobe mitigate list shows.")],
    model: Annotated[str, typer.Option(help="A folder, or a name on the hub.")],
    output_dir: Annotated[Path, typer.Option(metavar="M", help="Where to.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar=SOURCE, help="To learn from; may be repeated."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="A", help="A LoRA adapter on the model.")
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A method's setting.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    device_map: Annotated[
        str | None, typer.Option(metavar="auto", help="Spread one model over all GPUs.")
    ] = None,
    attn_implementation: Annotated[str, typer.Option(help="eager or sdpa.")] = "eager",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what M holds.")] = False,
) -> None:
    """Fit a method to a model and save it: settings as JSON, what it learned as safetensors.

    The prompts are of the groups that the method learns from: toxic, normal, seemingly_toxic.
    """
    _fit(dict(locals()))


def _fit(options: dict[str, Any]) -> None:
    """Turn the options into one fit, and end with one line.

    Raises:
        UserError: if the call makes no sense.
    """
    from .. import mitigations
    from ..checkpoints import LoadSettings, base_and_adapter, load_model, load_tokenizer
    from ..prompts.prompt_set import PromptSet
    from ..prompts.rendering import current_day, dated
    from ._options import quieten

    quieten()
    method = _configured(options)
    folder: Path = options["output_dir"]
    _insist_on_a_place(folder, options["overwrite"])
    files = options["prompts"] or []
    if not files and method.kind == "steering":
        raise UserError(
            f"{options['method']} learns from prompts: give --prompts FILE or FILE=GROUP"
        )
    prompts = PromptSet.from_files(files) if files else PromptSet(())
    names = ("dtype", "device", "device_map", "attn_implementation")
    named, adapter = base_and_adapter(options["model"], options["adapter"])
    base = load_model(named, LoadSettings(**{name: options[name] for name in names}))
    tokenizer = load_tokenizer(named, local=False)
    with dated(current_day()), _adapted(base, adapter) as model:  # one day, also past midnight
        fitted = method.fit(model, tokenizer, prompts)
        day = _told_of_template(method, tokenizer) if files else None
    mitigations.save(fitted, folder, template_date=day)
    if report := getattr(fitted, "report", None):
        for name, found in report.items():
            print(f"  {name}: {_told(found)}", file=sys.stderr)
    given = f"{_where(options)} --prompts FILE --mitigation {folder}"
    typer.echo(one_line(f"fitted: {folder}; next: ntkprobe measure {given}"))


def _told_of_template(method: Any, tokenizer: Any) -> str | None:
    """Return the day that a method's template prints; tell what a reader should know of it."""
    from ..prompts.templates import resolve_template

    template = resolve_template(tokenizer, getattr(method, "template", "auto"))
    for line in template.remarks(tokenizer):
        print(one_line(line), file=sys.stderr)
    return template.day


def _configured(options: dict[str, Any]) -> Any:
    """Return the method with the settings given."""
    from ..mitigations.settings import checked_settings
    from ..mitigations.storage import mitigation_class
    from ._train_settings import assignment

    kind = mitigation_class(options["method"])
    given = dict(assignment(text) for text in options["set"] or [])
    return kind(**checked_settings(kind, given))


def _insist_on_a_place(folder: Path, overwrite: bool) -> None:
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


def _where(options: dict[str, Any]) -> str:
    """Return how `measure` is told of the same model: an adapter is a checkpoint of a run."""
    named, adapter = options["model"], options["adapter"]
    if (Path(named) / "adapter_config.json").is_file():
        return f"--ckpt-dir {named}"
    return f"--model {named}" + (f" --ckpt-dir {adapter}" if adapter else "")


def _written(value: Any) -> str:
    """Return a value as --set takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _told(found: dict[str, Any]) -> str:
    """Return what is known about a vector."""
    return ", ".join(f"{name} {_written(value)}" for name, value in found.items())
