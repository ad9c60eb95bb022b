"""`ntkprobe win-rate`: compare a model's answers with a reference run's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError, one_line
from ..settings import Flag
from ._options import command_of


@dataclass(frozen=True, kw_only=True)
class WinRateOptions:
    """What `ntkprobe win-rate` is asked for.

    Attributes:
        evaluation: a folder of ntkprobe evaluate.
        reference: the folder that it is compared with, such as STL's.
        base_url: the annotator's server, as `http://HOST:PORT/v1`.
        model: what the server calls the annotator.
        benchmark: may be repeated.
        max_tokens: of a reply; more for an annotator that thinks first.
        concurrency: questions at the same time.
        key_variable: the environment variable that holds the key.
    """

    evaluation: Annotated[Path, Flag(argument=True, metavar="E")]
    reference: Annotated[Path, Flag(metavar="R")]
    base_url: Annotated[str, Flag(metavar="URL")]
    model: str
    benchmark: Annotated[
        list[str] | None, Flag(metavar="NAME", shows="all that both have answered")
    ] = None
    max_tokens: Annotated[int, Flag(least=1)] = 16
    concurrency: Annotated[int, Flag(least=1)] = 8
    key_variable: Annotated[str, Flag(metavar="NAME")] = "OPENAI_API_KEY"


@command_of(WinRateOptions)
def win_rate(options: WinRateOptions) -> int:
    """Let a model compare answers with a reference run's, in both orders; nothing is asked twice.

    Pairs that failed are asked again by the same command; the status is 1 while there are any. A
    reply off the format stays undetermined.
    """  # ruff: ignore[docstring-missing-returns, docstring-missing-exception]
    from ..evaluation import Evaluation
    from ..evaluation.preferences import Annotator, compare_answers, failures
    from ..evaluation.server import Server

    evaluation, reference = options.evaluation, options.reference
    ours, theirs = Evaluation(evaluation), Evaluation(reference)
    shared = [name for name in ours.benchmarks if name in theirs.benchmarks]
    names = options.benchmark or shared
    if not names:
        raise UserError(f"{evaluation} and {reference} have no benchmark in common")
    server = Server(
        options.base_url,
        options.model,
        concurrency=options.concurrency,
        key_variable=options.key_variable,
    )
    server.check()
    failed: list[str] = []
    for name in names:
        annotator = Annotator(server, options.max_tokens)
        failed += failures(compare_answers(evaluation, reference, name, annotator, theirs.label))
    found = ours.win_rates()
    rows = found.loc[(found["reference"] == theirs.label) & found["benchmark"].isin(names)]
    for row in rows.to_dict("records"):
        typer.echo(_line(row))
    if failed:
        typer.echo(
            one_line(f"{len(failed)} pairs failed ({failed[0]}): run the same command again")
        )
    return 1 if failed else 0


def _line(row: dict) -> str:
    """Return one win rate with what it rests on."""
    if row["count"] == 0:
        return f"{row['benchmark']}: no pair of {row['of']} could be compared"
    import pandas as pd

    shown = not pd.isna(row["consistency"])
    alike = f"{row['consistency']:.0%} alike in both orders" if shown else "all of equal answers"
    return (
        f"{row['benchmark']}: {row['method']} wins {row['value']:.1%} against {row['reference']} "
        f"[{row['low']:.1%}, {row['high']:.1%}], {row['count']} of {row['of']} pairs compared, "
        f"{alike}"
    )
