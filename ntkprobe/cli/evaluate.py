"""`ntkprobe evaluate`: let a model answer benchmarks, and judge the answers."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError, one_line
from ._options import SOME, config_defaults, preset_defaults, quieten

Flag = typer.Option


def evaluate(
    benchmark: Annotated[
        list[str] | None,
        Flag(
            metavar="NAME|NAME=FILE|FILE[=KIND]",
            help="What is asked; may be repeated. KIND is safe or unsafe; no such NAME lists all; "
            f"FILE may be {SOME}.",
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, Flag(metavar="E", help="Where to.", show_default="eval-LABEL")
    ] = None,
    model: Annotated[
        str | None, Flag(help="A folder, a hub name, or what the server calls it.")
    ] = None,
    adapter: Annotated[Path | None, Flag(metavar="A", help="An adapter over the model.")] = None,
    mitigation: Annotated[
        Path | None, Flag(metavar="M", help="What ntkprobe mitigate fit wrote.")
    ] = None,
    base_url: Annotated[
        str | None,
        Flag(metavar="URL", help="An OpenAI-compatible server instead, as http://HOST:PORT/v1."),
    ] = None,
    concurrency: Annotated[int, Flag(help="With --base-url: questions at the same time.")] = 8,
    judge: Annotated[
        list[str] | None,
        Flag(
            metavar="[LABEL=]NAME[:KEY=VALUE,…]",
            help="Who judges; may be repeated.",
            show_default="the keyword filters",
        ),
    ] = None,
    no_judge: Annotated[bool, Flag("--no-judge", help="Only answers.")] = False,
    label: Annotated[
        str | None, Flag(help="The method's name in tables.", show_default="the run's")
    ] = None,
    trained_on: Annotated[
        list[str] | None,
        Flag(metavar=SOME, help="Training data that no run of ours records; may be repeated."),
    ] = None,
    limit: Annotated[
        int | None, Flag(help="Only the first N prompts of each kind, to try things out.")
    ] = None,
    max_new_tokens: Annotated[int, Flag(help="Of an answer.")] = 256,
    temperature: Annotated[float, Flag(help="0 is greedy; more draws.")] = 0.0,
    seed: Annotated[int, Flag(help="Of drawn answers.")] = 0,
    template: Annotated[
        str, Flag(help="auto (chat where the tokenizer has one), chat, raw, or a Jinja file.")
    ] = "auto",
    max_length: Annotated[int | None, Flag(help="Tokens of a prompt at most.")] = None,
    preset: Annotated[
        str | None,
        Flag(
            metavar="paper",
            help="As the paper, and where it is silent as its authors' code is said to do.",
            callback=preset_defaults,
            is_eager=True,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        Flag(
            metavar="FILE", help="YAML with these options.", callback=config_defaults, is_eager=True
        ),
    ] = None,
    dtype: Annotated[str, Flag(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, Flag(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    device_map: Annotated[
        str | None, Flag(metavar="auto", help="Spread one model over all GPUs.")
    ] = None,
    attn_implementation: Annotated[str, Flag(help="eager or sdpa.")] = "sdpa",
    batch_size: Annotated[
        str, Flag(metavar="auto|N", help="Prompts at a time; auto halves it when memory runs out.")
    ] = "auto",
    overwrite: Annotated[bool, Flag("--overwrite", help="Forget what E holds.")] = False,
) -> int:
    """Let a model answer benchmarks, and judge the answers.

    What E holds already is neither asked nor judged again: run the same command to go on, with
    further benchmarks or judges if you like.
    """  # ruff: ignore[docstring-missing-returns]
    return _evaluate(dict(locals()))


def _evaluate(options: dict[str, Any]) -> int:
    """Turn the options into one call, show the rates, and end with one line.

    Returns:
        The exit status.

    Raises:
        UserError: if the call makes no sense.
    """
    from ..evaluation.benchmarks import read_benchmark
    from ..evaluation.judge_specs import DEFAULT, read_judges
    from ..evaluation.settings import AnswerSettings

    if not options["benchmark"]:
        raise UserError("no benchmark: give --benchmark NAME or FILE; any other NAME lists all")
    settings = AnswerSettings(
        max_new_tokens=options["max_new_tokens"],
        temperature=options["temperature"],
        seed=options["seed"],
        template=options["template"],
        max_length=options["max_length"],
    )
    judges = read_judges([] if options["no_judge"] else options["judge"] or DEFAULT)
    benchmarks = [read_benchmark(word).first(options["limit"]) for word in options["benchmark"]]
    quieten()
    subject = _subject(options)
    from ..evaluation.run import evaluate as run
    from ..evaluation.run import label_of

    for questions in benchmarks:
        if questions.note:
            _tell(one_line(questions.note))
    done = run(
        subject,
        benchmarks,
        options["output_dir"] or Path(f"eval-{options['label'] or label_of(subject)}"),
        judges=judges,
        settings=settings,
        label=options["label"],
        trained_on=options["trained_on"] or (),
        batch_size=_batch_size(options["batch_size"]),
        overwrite=options["overwrite"],
        argv=sys.argv[1:],
    )
    for line in done.lines():
        _tell(line)
    typer.echo(one_line(done.closing_line()))
    return done.status


def _subject(options: dict[str, Any]) -> Any:
    """Return the model on disk, or the server.

    Raises:
        UserError: if options contradict each other.
    """
    from ..checkpoints import LoadSettings
    from ..evaluation.models import EvaluatedModel
    from ..evaluation.server import Server

    if options["base_url"] is None:
        load = LoadSettings(
            dtype=options["dtype"],
            device=options["device"],
            device_map=options["device_map"],
            attn_implementation=options["attn_implementation"],
        )
        return EvaluatedModel.named(
            options["model"], options["adapter"], options["mitigation"], load
        )
    for name in ("adapter", "mitigation"):
        if options[name] is not None:
            raise UserError(f"--{name} goes with a model in memory, not with --base-url")
    if not options["model"]:
        raise UserError("--base-url needs --model: what the server calls the model")
    return Server(options["base_url"], options["model"], concurrency=options["concurrency"])


def _batch_size(text: str) -> int | None:
    """Return the number, or None for auto.

    Raises:
        UserError: if it is neither.
    """
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch-size {text!r}: give auto, or 1 or more")
    return int(text)


def _tell(message: str) -> None:
    """Print a line about what is going on, on standard error."""
    print(message, file=sys.stderr)
