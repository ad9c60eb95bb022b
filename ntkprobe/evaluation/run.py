"""Evaluate one model: generate the missing answers, then the missing verdicts."""

import json
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoints.tokenizer_files import PROBE
from ..errors import UserError, one_line
from ..prompts.rendering import dated
from .answers import ModelBackend, Question, RemoteModel
from .benchmarks import BenchmarkPrompts
from .folder import EvaluationFolder, require_outside_models
from .judge_specs import check
from .judging import digest, judge_answers
from .models import EvaluatedModel
from .outcome import Outcome
from .overlap import named_before, overlap, training_prompts
from .server import Server
from .settings import AnswerSettings
from .verdicts import FAILED, Judge


def evaluate(
    subject: EvaluatedModel | Server,
    benchmarks: Sequence[BenchmarkPrompts],
    output_dir: Path,
    *,
    judges: Mapping[str, Judge],
    settings: AnswerSettings | None = None,
    label: str | None = None,
    trained_on: Sequence[str | Path] = (),
    batch_size: int | None = None,
    overwrite: bool = False,
    argv: Sequence[str] = (),
) -> Outcome:
    """Answer benchmarks with a model and judge the answers; what is on disk is not repeated.

    Args:
        subject: the model, on disk or behind a server.
        benchmarks: the prompts.
        output_dir: the folder of the evaluation; each file is written atomically.
        judges: by label.
        settings: how it answers.
        label: what the model is called in tables.
        trained_on: further files with prompts that it was trained on.
        batch_size: prompts at a time; None for an automatic choice.
        overwrite: delete what the folder holds first.
        argv: the command line, for the record.

    Returns:
        What was answered and judged, and what failed.

    Raises:
        UserError: for a mistake in the call, or settings other than the folder's.
    """
    if not benchmarks:
        raise UserError("no benchmark: give --benchmark NAME or FILE")
    names = [questions.name for questions in benchmarks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two benchmarks are called {twice[0]!r}: rename one of the files")
    chosen = settings or AnswerSettings()
    require_outside_models([] if isinstance(subject, Server) else subject.places, output_dir)
    folder = EvaluationFolder(output_dir)
    folders = [] if isinstance(subject, Server) else subject.folders
    model, trained = _model(subject), training_prompts(folders, trained_on)
    kept = {} if overwrite else folder.record.get("answers", {})
    template, remarks = _template(subject, chosen, kept.get("template_date"))
    require_same_prompts(folder.path, kept, template)
    check(judges)
    if overwrite:  # only now, when no mistake in the call is paid with answers
        _check_server(subject)
        folder.clear(model)
    folder.adopt(
        {
            "model": model,
            "answers": {**chosen.record(), **template},
            "benchmarks": _benchmark_records(benchmarks, trained, folder),
        },
        label=label or folder.record.get("label") or label_of(subject),
        argv=list(argv),
    )
    for line in remarks:
        print(one_line(line), file=sys.stderr)
    with dated(template.get("template_date")):
        new, failures = _answer_all(folder, subject, benchmarks, chosen, batch_size)
    answered = [name for name in names if folder.answered(name)]
    unjudged = _judge_all(folder, answered, judges)
    return Outcome(folder.path, answered, tuple(judges), new, failures, unjudged)


def _template(
    subject: EvaluatedModel | Server, settings: AnswerSettings, day: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Return what is recorded of the template, and remarks for the user.

    Args:
        subject: a model, or a server, whose template is unknown.
        settings: how it answers.
        day: the date in the prompts of the folder's answers, if it is known.
    """
    if isinstance(subject, Server):
        return {"resolved_template": None}, []
    with dated(day):
        template = subject.template(settings.template)
        probe = template.encode(subject.tokenizer, PROBE)
    bridge = template.bridge(subject.tokenizer)
    record: dict[str, Any] = {"resolved_template": subject.template_name(template)}
    # Of a tokenizer, what counts is how it splits texts, and which tokens end an answer.
    record["probe_tokens"] = digest(json.dumps(list(map(int, probe))))
    record["stop_ids"] = sorted(template.stop_ids(subject.tokenizer))
    record |= {"template_date": template.day} if template.day else {}
    record |= {"answer_start": bridge} if bridge else {}
    return record, template.remarks(subject.tokenizer)


def require_same_prompts(
    folder: Path, kept: Mapping[str, Any], template: Mapping[str, Any]
) -> None:
    """Check that the folder's answers are to prompts rendered as those of this call.

    Raises:
        UserError: if their date or their end is not recorded.
    """
    for key, what in (
        ("template_date", "on another day"),
        ("answer_start", "behind other prompts"),
    ):
        if kept and key in template and key not in kept:
            raise UserError(
                f"{folder} was answered {what}: run.json has no answers.{key}, which is now "
                f"{template[key]!r}: give another --output-dir, or --overwrite"
            )


def _check_server(subject: EvaluatedModel | Server) -> None:
    """Check a server; a model in memory needs no check."""
    if isinstance(subject, Server):
        subject.check()


def label_of(subject: EvaluatedModel | Server) -> str:
    """Return the default label of a model."""
    return subject.model.rpartition("/")[2] if isinstance(subject, Server) else subject.label


def _answer_all(
    folder: EvaluationFolder,
    subject: EvaluatedModel | Server,
    benchmarks: Sequence[BenchmarkPrompts],
    settings: AnswerSettings,
    batch_size: int | None,
) -> tuple[int, list[str]]:
    """Return the number of new answers, and the failures; the model is loaded only if needed."""
    from ..progress import progress

    missing = {questions.name: _missing(folder, questions) for questions in benchmarks}
    left = sum(map(len, missing.values()))
    for questions in benchmarks:
        folder.write_questions(questions)
    if not left:
        return 0, []
    given = 0
    with (
        _answering(subject, settings, batch_size) as respondent,
        progress(total=left, unit="prompt") as bar,
    ):
        for name, asked in missing.items():
            bar.set_description(name)
            for batch in respondent.answer(asked) if asked else ():
                folder.write_batch(name, batch)
                given += len(batch)
                bar.update(len(batch))
    return given, respondent.failures


def _judge_all(
    folder: EvaluationFolder, benchmarks: Sequence[str], judges: Mapping[str, Judge]
) -> list[str]:
    """Return the errors of failed requests, which another run repeats."""
    reasons: list[str] = []
    for benchmark in benchmarks:
        for label, judge in judges.items():
            details = judge_answers(folder.path, benchmark, judge, label)["detail"]
            failed = details[details.str.startswith(FAILED)]
            reasons += [f"{label}: {detail.removeprefix(FAILED)}" for detail in failed]
    return reasons


@contextmanager
def _answering(
    subject: EvaluatedModel | Server, settings: AnswerSettings, batch_size: int | None
) -> Generator[ModelBackend]:
    """Open the backend that answers.

    Yields:
        A model in memory, or one behind a server that can be reached.
    """
    _check_server(subject)
    if isinstance(subject, Server):
        yield RemoteModel(subject, settings, batch_size)
    else:
        with subject.in_memory(settings, batch_size) as model:
            yield model


def _missing(folder: EvaluationFolder, questions: BenchmarkPrompts) -> list[Question]:
    """Return the prompts of a benchmark that have no answer yet."""
    done = folder.answered(questions.name)
    rows = questions.table[["id", "prompt"]].itertuples(index=False)
    return [Question(str(row.id), str(row.prompt)) for row in rows if str(row.id) not in done]


def _model(subject: EvaluatedModel | Server) -> dict[str, Any]:
    """Return the record of the model in `run.json`."""
    if isinstance(subject, Server):
        return {"server": subject.base_url, "model": subject.model}
    return subject.record()


def _benchmark_records(
    benchmarks: Sequence[BenchmarkPrompts],
    trained: Mapping[str, set[str]],
    folder: EvaluationFolder,
) -> dict[str, Any]:
    """Return the record of benchmarks in `run.json`; what was known of an overlap is kept."""
    before = folder.record.get("benchmarks", {})
    every = {**named_before(before), **trained}
    records = {}
    for each in benchmarks:
        known, now = before.get(each.name, {}).get("overlap"), overlap(each, every)
        # A file that is gone since cannot be compared again: it was seen to overlap all the same.
        gone = known and (now is None or now["prompts"] < known["prompts"])
        records[each.name] = {**each.record(), "overlap": known if gone else now}
    return records
