"""`ntkprobe win-rate`: compare a model's answers with a reference run's."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError, one_line


def win_rate(
    evaluation: Annotated[
        Path, typer.Argument(metavar="E", help="A folder of ntkprobe evaluate.", show_default=False)
    ],
    reference: Annotated[
        Path, typer.Option(metavar="R", help="The folder that it is compared with, such as STL's.")
    ],
    base_url: Annotated[
        str, typer.Option(metavar="URL", help="The annotator's server, as http://HOST:PORT/v1.")
    ],
    model: Annotated[str, typer.Option(help="What the server calls the annotator.")],
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="May be repeated.", show_default="all that both have answered"
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Of a reply; more for an annotator that thinks first.")
    ] = 16,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions at the same time.")] = 8,
    key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
) -> int:
    """Let a model compare answers with a reference run's, in both orders; nothing is asked twice.

    Pairs that failed are asked again by the same command; the status is 1 while there are any. A
    reply off the format stays undetermined.
    """  # ruff: ignore[docstring-missing-returns, docstring-missing-exception]
    from ..evaluation import Evaluation
    from ..evaluation.preferences import Annotator, compare_answers, failures
    from ..evaluation.server import Server

    ours, theirs = Evaluation(evaluation), Evaluation(reference)
    shared = [name for name in ours.benchmarks if name in theirs.benchmarks]
    names = benchmark or shared
    if not names:
        raise UserError(f"{evaluation} and {reference} have no benchmark in common")
    server = Server(base_url, model, concurrency=concurrency, key_variable=key_variable)
    server.check()
    failed: list[str] = []
    for name in names:
        annotator = Annotator(server, max_tokens)
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
    return (
        f"{row['benchmark']}: {row['method']} wins {row['value']:.1%} against {row['reference']} "
        f"[{row['low']:.1%}, {row['high']:.1%}], {row['count']} of {row['of']} pairs compared, "
        f"{row['consistency']:.0%} alike in both orders"
    )
