"""`ntkprobe evaluate`: let a model answer benchmarks, and judge the answers."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import typer

from ..errors import UserError, one_line
from ..evaluation.settings import ANSWERS, AnswerSettings
from ..settings import BATCH_SIZE, Flag, LoadSettings
from ..stages import Stage, only_template
from ._options import (
    SOME,
    command_of,
    config_defaults,
    named_stages,
    preset_defaults,
    quieten,
    report_line,
)

if TYPE_CHECKING:
    from ..evaluation.models import EvaluatedModel
    from ..evaluation.server import Server

SERVER, JUDGES = "A model behind a server", "Judges"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What `ntkprobe evaluate` is asked for.

    Attributes:
        benchmark: what is asked; may be repeated. KIND is `safe` or `unsafe`; no such NAME lists
            all; FILE may be `FILE[:COLUMN=VALUE,…]`.
        output_dir: the folder of the evaluation.
        model: a folder, a hub name, or what the server calls it.
        adapter: an adapter over the model.
        stage: a named model (folder, hub name, GGUF file, adapter), into E/NAME; once for each, in
            order.
        mitigation: what `ntkprobe mitigate fit` wrote.
        label: the method's name in tables.
        trained_on: training data that no run of `ntkprobe train` records; may be repeated.
        limit: only the first N prompts of each kind, to try things out.
        preset: settings of the paper and, where it gives none, those reported of its authors' code.
        config: a YAML file with these options.
        overwrite: discard what E holds.
        judge: a judge of the answers; may be repeated.
        phrases: a set of refusal prefixes from a file, such as another language's, as a further
            judge under its name; may be repeated.
        no_judge: only generate answers.
        answers: how the model answers.
        template: `auto` (chat where the tokenizer has one), `chat`, `raw`, a shipped one, or a
            Jinja file; with stages `STAGE=` names the one it is for.
        base_url: an OpenAI-compatible server instead, as `http://HOST:PORT/v1`.
        concurrency: with `--base-url`: questions at the same time.
        load: how the model is loaded.
        batch_size: prompts at a time; `auto` halves it when memory runs out.
    """

    benchmark: Annotated[list[str] | None, Flag(metavar="NAME|NAME=FILE|FILE[=KIND]")] = None
    output_dir: Annotated[Path | None, Flag(metavar="E", shows="eval-LABEL")] = None
    model: str | None = None
    adapter: Annotated[Path | None, Flag(metavar="A")] = None
    stage: Annotated[list[str] | None, Flag(metavar="NAME=MODEL")] = None
    mitigation: Annotated[Path | None, Flag(metavar="M")] = None
    label: Annotated[str | None, Flag(shows="the run's")] = None
    trained_on: Annotated[list[str] | None, Flag(metavar=SOME)] = None
    limit: int | None = None
    preset: Annotated[str | None, Flag(metavar="paper", callback=preset_defaults)] = None
    config: Annotated[Path | None, Flag(metavar="FILE", callback=config_defaults)] = None
    overwrite: bool = False
    judge: Annotated[
        list[str] | None,
        Flag(panel=JUDGES, metavar="[LABEL=]NAME[:KEY=VALUE,…]", shows="the keyword filters"),
    ] = None
    phrases: Annotated[list[str] | None, Flag(panel=JUDGES, metavar="[NAME=]FILE")] = None
    no_judge: Annotated[bool, Flag(panel=JUDGES)] = False
    answers: AnswerSettings = field(default_factory=AnswerSettings)
    template: Annotated[
        list[str] | None, Flag(panel=ANSWERS, metavar="[STAGE=]TEMPLATE", shows="auto")
    ] = None
    base_url: Annotated[str | None, Flag(panel=SERVER, metavar="URL")] = None
    concurrency: Annotated[int, Flag(panel=SERVER)] = 8
    load: LoadSettings = field(default_factory=lambda: LoadSettings(attn_implementation="sdpa"))
    batch_size: Annotated[int | None, BATCH_SIZE] = None

    def stages(self) -> tuple[Stage, ...]:
        """Return the named models; empty where one model is evaluated.

        Raises:
            UserError: if an option of one model is given with them.
        """
        if not self.stage:
            return ()
        for name in ("adapter", "mitigation", "label", "base_url"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} is about one model, and --stage names several: "
                    "leave one of them out"
                )
        return named_stages(self.stage, self.template, self.model)

    def subject(self) -> Union["EvaluatedModel", "Server"]:
        """Return the model on disk, or the server.

        Raises:
            UserError: if options contradict each other.
        """
        from ..evaluation.models import EvaluatedModel
        from ..evaluation.server import Server

        if self.base_url is None:
            return EvaluatedModel.named(self.model, self.adapter, self.mitigation, self.load)
        for name, value in (("adapter", self.adapter), ("mitigation", self.mitigation)):
            if value is not None:
                raise UserError(f"--{name} goes with a model in memory, not with --base-url")
        if not self.model:
            raise UserError("--base-url needs --model: what the server calls the model")
        return Server(self.base_url, self.model, concurrency=self.concurrency)


@command_of(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> int:
    """Let a model answer benchmarks, and judge the answers.

    What E holds already is neither asked nor judged again: run the same command to go on, with
    further benchmarks or judges if you like.
    """  # ruff: ignore[docstring-missing-returns, docstring-missing-exception]
    from ..evaluation.benchmarks import read_benchmark
    from ..evaluation.judge_specs import DEFAULT, read_judges, with_phrase_sets

    if not options.benchmark:
        raise UserError("no benchmark: give --benchmark NAME or FILE; any other NAME lists all")
    if options.no_judge and options.phrases:
        raise UserError("--phrases names judges: leave out --no-judge")
    judges = read_judges([] if options.no_judge else options.judge or DEFAULT)
    judges = with_phrase_sets(judges, options.phrases or [])
    benchmarks = [read_benchmark(word).first(options.limit) for word in options.benchmark]
    quieten()
    stages = options.stages()
    subject = None if stages else options.subject()
    for questions in benchmarks:
        if questions.note:
            report_line(questions.note)
    how: dict[str, Any] = {
        "judges": judges,
        "trained_on": options.trained_on or (),
        "batch_size": options.batch_size,
        "overwrite": options.overwrite,
        "argv": sys.argv[1:],
    }
    done = _evaluated(options, subject, stages, benchmarks, how)
    for line in done.lines():
        print(one_line(line) if stages else line, file=sys.stderr)  # a table keeps its spaces
    typer.echo(one_line(done.closing_line()))
    return done.status


def _evaluated(
    options: EvaluateOptions, subject: Any, stages: Any, benchmarks: Any, how: dict[str, Any]
) -> Any:
    """Return what became of the model, or of each of the named ones."""
    if stages:
        from ..evaluation.stages import evaluate_stages

        return evaluate_stages(
            stages,
            benchmarks,
            options.output_dir or Path("eval-stages"),
            model=options.model,
            load=options.load,
            settings=options.answers,
            **how,
        )
    from ..evaluation.run import evaluate as run
    from ..evaluation.run import label_of

    return run(
        subject,
        benchmarks,
        options.output_dir or Path(f"eval-{options.label or label_of(subject)}"),
        settings=replace(options.answers, template=only_template(options.template)),
        label=options.label,
        **how,
    )
