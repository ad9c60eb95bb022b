"""`ntkprobe report`: write one HTML page about measured runs and evaluations."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError


def report(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="OUT",
            help="Folders of ntkprobe measure and ntkprobe evaluate, folders that hold some, or "
            "NAME=FOLDER.",
            show_default=False,
        ),
    ],
    output_file: Annotated[Path, typer.Option(metavar="FILE", help="Where to.")] = Path(
        "report.html"
    ),
    blur: Annotated[
        bool, typer.Option("--blur", help="Blur toxic texts until they are pointed at.")
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Write the page again whenever a checkpoint is added, until Ctrl-C."
        ),
    ] = False,
    poll_interval: Annotated[
        float, typer.Option(min=0.01, metavar="SECONDS", help="Between two looks, with --follow.")
    ] = 10.0,
    idle_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --follow, end after so long without news.",
            show_default="never",
        ),
    ] = None,
) -> None:
    """Write one HTML page about runs and evaluations. Loads no model; the page needs no network.

    It opens in any browser, from a disk or as an attachment, and holds all prompts and answers.
    """  # ruff: ignore[docstring-missing-exception]
    from .. import report as pages

    if output_file.is_dir():
        raise UserError(
            f"--output-file {output_file} is a folder: give a file, such as report.html"
        )
    if not follow:
        pages.make_report(places, blur=blur).save(output_file)
    else:
        pages.follow(
            places,
            output_file,
            blur=blur,
            poll_interval=poll_interval,
            idle_timeout=idle_timeout,
            log=lambda line: typer.echo(line, err=True),
        )
    size = output_file.stat().st_size / 1e6
    typer.echo(f"{output_file} ({size:.1f} MB): open it in a browser; it needs nothing else.")
