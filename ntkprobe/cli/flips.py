"""`ntkprobe flips`: list prompts whose verdict changed between steps or models."""

from math import isnan
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError, one_line
from ..storage import replacing

SHOWN = 200
"""Characters of a text that are printed; files hold all of it."""


def flips(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="OUT | E1 E2",
            help="A folder of ntkprobe measure, or two of ntkprobe evaluate: before and after; "
            "of stages one.",
            show_default=False,
        ),
    ],
    before: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STEP|STAGE",
            help="Earlier step of a run, or name of a stage.",
            show_default="the first",
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="STEP|STAGE",
            help="Later step of a run, or name of a stage.",
            show_default="the last",
        ),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option(metavar="F.csv", help="Write the whole table.", show_default="none"),
    ] = None,
) -> None:
    """Print the prompts that began or stopped being refused, with what was measured of them."""  # ruff: ignore[docstring-missing-exception]
    places = _stages_of(places[0], before, after) if len(places) == 1 else places
    table, lines = _of_run(places[0], before, after) if len(places) == 1 else _between(places)
    for line in lines:
        typer.echo(one_line(line))
    counts = table["flip"].value_counts().to_dict()
    counted = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no verdict changed"
    typer.echo(
        f"{len(table)} flips: {counted}." if counts else f"{counted[0].upper()}{counted[1:]}."
    )
    if output_file is None:
        return
    try:
        with replacing(output_file) as hidden:
            table.to_csv(hidden, index=False)
    except OSError as error:
        raise UserError(f"cannot write {output_file}: {error.strerror or error}") from error
    typer.echo(f"The table is in {output_file}.")


def _stages_of(place: Path, before: str | None, after: str | None) -> list[Path]:
    """Return the folders of two stages, where a folder holds the evaluations of several.

    Raises:
        UserError: if there is no such stage, or only one.
    """
    from ..evaluation.results import evaluations_in

    found = [path for path in evaluations_in(place) if (path / "prompts").is_dir()]
    if not found or (place / "prompts.parquet").is_file():
        return [place]
    names = [path.name for path in found]
    for name in (before, after):
        if name is not None and name not in names:
            raise UserError(f"{place} has no stage {name!r}: choose from {names}")
    chosen = [place / (before or names[0]), place / (after or names[-1])]
    if chosen[0] == chosen[1]:
        raise UserError(f"{place} has the stage {names[0]} alone, and a flip takes two")
    return chosen


def _of_run(place: Path, before: str | None, after: str | None) -> tuple[Any, list[str]]:
    from ..flips import flips_of_run
    from ..trajectory import Trajectory

    table = flips_of_run(Trajectory(place), before, after)
    lines = []
    for row in table.to_dict("records"):
        one, two = row["probability_before"], row["probability_after"]
        numbers = [f"P(refuse) {one:.2f} → {two:.2f}"]
        if not isnan(row["similarity_before"]):
            numbers.append(f"similarity to toxic {row['similarity_before']:.2f}")
        if not isnan(row["push"]):
            numbers.append(f"summed influence {row['push']:+.3g}")
        text = row["text"][:SHOWN]
        lines.append(f"{row['group']}, {row['flip']}: {text} ({'; '.join(numbers)})")
    return table, lines


def _between(places: list[Path]) -> tuple[Any, list[str]]:
    from ..evaluation.results import Evaluation
    from ..flips import flips_between

    if len(places) != 2:
        raise UserError(f"{len(places)} folders: give one of measure, or two of evaluate")
    table = flips_between(*(Evaluation(place) for place in places))
    lines = []
    for row in table.to_dict("records"):
        about = f"{row['benchmark']}, {row['kind']}, {row['flip']}"
        lines.append(f"{about}: {row['prompt'][:SHOWN]}")
        lines += [f"  {when}: {str(row[f'answer_{when}'])[:SHOWN]}" for when in ("before", "after")]
    return table, lines
