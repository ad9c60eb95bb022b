"""`ntkprobe replicate`: repeat the paper's experiment on a real model."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError, one_line

Flag = typer.Option


def replicate(
    model: Annotated[
        str, Flag(metavar="MODEL", help="A chat model: a GGUF file, a folder, or a hub name.")
    ],
    data: Annotated[
        Path | None,
        Flag(
            metavar="DIR",
            help="A folder with the files under their published names.",
            show_default=False,
        ),
    ] = None,
    hub: Annotated[
        bool,
        Flag("--hub", help="Take what DIR lacks from the Hugging Face hub, where that has it."),
    ] = False,
    output_dir: Annotated[
        Path, Flag(metavar="OUT", help="Where to; what is there already is not done again.")
    ] = Path("runs/replication"),
    seeds: Annotated[str, Flag(help="Numbers joined by commas.")] = "0,1,2",
    scale: Annotated[str, Flag(help="small or paper.")] = "small",
    only: Annotated[
        str | None, Flag(metavar="STAGE", help="One stage, such as train, stl, report.")
    ] = None,
    dry_run: Annotated[
        bool, Flag("--dry-run", help="Say what would be done, and what it takes.")
    ] = False,
    device: Annotated[str, Flag(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, Flag(help="Of the weights: float32, bfloat16.")] = "float32",
) -> None:
    """Run the paper's experiment: train, measure, evaluate, draw, and write a report with verdicts.

    Stop it at any time: the same command goes on where it was. docs/replication.md says what is
    asked, and how it is decided.
    """
    from ._options import quieten

    quieten()
    from ..replication.run import plan
    from ..replication.run import replicate as run
    from ..replication.settings import ReplicationSettings

    settings = ReplicationSettings(
        model=model,
        output_dir=output_dir,
        data=data,
        hub=hub,
        seeds=_numbers(seeds),
        scale=scale,
        device=device,
        dtype=dtype,
    )
    if dry_run:
        for line in plan(settings, only=only):
            typer.echo(one_line(line))
        return
    report = run(settings, only=only)
    there = report if report.is_file() else f"{output_dir}; next: the same command without --only"
    typer.echo(one_line(f"replicated: {there}"))


def _numbers(text: str) -> tuple[int, ...]:
    """Return the seeds.

    Raises:
        UserError: if they are none.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserError(f"--seeds {text!r}: give whole numbers joined by commas, as in 0,1,2")
    return tuple(map(int, parts))
