"""`ntkprobe replicate`: repeat the paper's experiment on a real model."""

from dataclasses import dataclass
from typing import Annotated

import typer

from ..errors import one_line
from ..replication.settings import ReplicationSettings
from ..settings import Flag
from ._options import command_of, quieten


@dataclass(frozen=True, kw_only=True)
class ReplicateOptions:
    """What `ntkprobe replicate` is asked for.

    Attributes:
        replication: the settings.
        only: one stage, such as train, stl, report.
        dry_run: say what would be done, and what it takes.
    """

    replication: ReplicationSettings
    only: Annotated[str | None, Flag(metavar="STAGE")] = None
    dry_run: bool = False


@command_of(ReplicateOptions)
def replicate(options: ReplicateOptions) -> None:
    """Run the paper's experiment: train, measure, evaluate, draw, and write a report with verdicts.

    Stop it at any time: the same command goes on where it was. docs/replication.md says what is
    asked, and how it is decided.
    """
    quieten()
    from ..replication.run import plan
    from ..replication.run import replicate as run

    settings = options.replication
    if options.dry_run:
        for line in plan(settings, only=options.only):
            typer.echo(one_line(line))
        return
    report = run(settings, only=options.only)
    unfinished = f"{settings.output_dir}; next: the same command without --only"
    typer.echo(one_line(f"replicated: {report if report.is_file() else unfinished}"))
