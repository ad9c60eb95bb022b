"""`ntkprobe table`: write tables of evaluated models, beside the paper's."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..storage import replacing

SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv"}


def table(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="E",
            help="Folders of ntkprobe evaluate (table 2: of ntkprobe train), folders that hold "
            "some, or NAME=FOLDER.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            "--table",
            metavar="1|2|3|4|5|tasks|…",
            help="1 methods, 2 time and memory, 3 epochs, 4 ratio, 5 judges, tasks, kinds, pairs, "
            "two-sided, agreement.",
        ),
    ] = "1",
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="markdown|latex|csv",
            help="CSV is tidy and unrounded.",
            show_default="as the file's ending, else markdown",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="paper[:MODEL]", help="Put the paper's printed numbers beside ours."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Whose verdicts about refusals.", show_default="xstest_prefixes"),
    ] = None,
    safety_judge: Annotated[
        str | None,
        typer.Option(help="Whose verdicts about safety.", show_default="llama_guard"),
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option(metavar="F", help="Where to.", show_default="standard output")
    ] = None,
) -> None:
    """Print a table of evaluated models: rates with intervals and coverage. Loads no model."""  # ruff: ignore[docstring-missing-exception]
    from ..tables import FORMATS, make_table

    ending = SUFFIXES.get(output_file.suffix, "markdown") if output_file else "markdown"
    if (chosen := form or ending) not in FORMATS:
        raise UserError(f"no format {chosen!r}: choose from {', '.join(FORMATS)}")
    made = make_table(places, name, compare=compare, judge=judge, safety_judge=safety_judge)
    if output_file is None:
        typer.echo(made.text(chosen), nl=False)
        return
    try:
        with replacing(output_file) as hidden:
            hidden.write_text(made.text(chosen), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {output_file}: {error.strerror or error}") from error
    typer.echo(f"Table {name} of {made.numbers['row'].nunique()} rows in {output_file}.")
