"""`ntkprobe figures`: draw the figures of measured runs."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError, one_line
from ..figures import Drawn, draw_figures, find_runs


def figures(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="OUT",
            help="Folders of measurements, a folder that holds some, or NAME=FOLDER.",
            show_default=False,
        ),
    ],
    output_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to.", show_default="figures/ beside the first OUT"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="FIGURE", help="Only this one, such as fig3; may be repeated."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="paper", help="Put the paper's printed numbers beside ours."),
    ] = None,
) -> int:
    """Draw the figures of measured runs: PNG, PDF, and the numbers as CSV. Loads no model.

    A run is called like its folder, less an ending -ntk; stl and dcr-stl get the paper's titles.
    """  # ruff: ignore[docstring-missing-exception, docstring-missing-returns]
    runs = find_runs(places)
    folder = output_dir or next(iter(runs.values())).folder.resolve().parent / "figures"
    drawn = draw_figures(runs, folder, only or (), compare)
    for name, reason in [*drawn.missing.items(), *drawn.broken.items()]:
        typer.echo(one_line(f"{name} not drawn: {reason}"), err=True)
    if not drawn.files and drawn.broken:
        return 1
    if not drawn.files or (only and drawn.missing):
        raise UserError("not every figure could be drawn: see above for what is missing")
    if drawn.compared:
        typer.echo(f"{drawn.comparison()}\n")
    typer.echo(_closing_line(drawn, folder))
    return 1 if drawn.broken else 0


def _closing_line(drawn: Drawn, folder: Path) -> str:
    """Return what was drawn and where."""
    names = list(dict.fromkeys(path.stem for path in drawn.files))
    figures = "1 figure" if len(names) == 1 else f"{len(names)} figures"
    return f"{figures} in {folder} ({', '.join(names)}), each as PNG, PDF and CSV."
