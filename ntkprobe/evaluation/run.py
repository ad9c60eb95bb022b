"""Evaluate one model: ask what has not been asked, judge what has not been judged."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..server import Server
from .answers import Asked, RemoteModel, Respondent
from .benchmarks import Questions
from .folder import EvaluationFolder
from .judging import judge_answers
from .models import Subject
from .overlap import overlap, training_prompts
from .panel import check
from .settings import AnswerSettings
from .verdicts import CLASSES, UNDETERMINED, Judge

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
        folder: where it is.
        counts: how many verdicts of each class: benchmark, kind, judge, verdict, number.
        new: answers given in this call.
        empty: answers without any text.
        failures: why answers are missing.
        notes: which benchmarks the model was trained on.
    """

    folder: Path
    counts: "pd.DataFrame"
    new: int = 0
    empty: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """0, or 1 where answers are missing."""
        return 1 if self.failures else 0

    def lines(self) -> list[str]:
        """Return a line for each benchmark, kind and judge: the share of every verdict."""
        shown = []
        for (name, kind, judge), group in self.counts.groupby(
            ["benchmark", "kind", "judge"], sort=False
        ):
            number = dict(zip(group["verdict"], group["number"], strict=True))
            undetermined = number.pop(UNDETERMINED, 0)
            judged = sum(number.values())
            shares = [f"{what} {n / judged:6.1%}" for what, n in number.items()] if judged else []
            rest = f", {undetermined} undetermined" if undetermined else ""
            where = f"{name} ({kind}) {judge}"
            shown.append(f"{where:<52} {'  '.join(shares) or 'no verdict'}  of {judged}{rest}")
        return shown

    def warnings(self) -> list[str]:
        """Return what a reader of the rates must know: empty answers, prompts trained on."""
        empty = [f"{self.empty} answers are empty: undetermined for every judge"]
        return [*(empty if self.empty else []), *self.notes]

    def closing_line(self) -> str:
        """Return one line: what was done, and what can be done next."""
        answers = f"{self.new} new answers in {self.folder}"
        if self.failures:
            return (
                f"{answers}; {len(self.failures)} are missing ({self.failures[0]}): run the same "
                "command again"
            )
        return f"{answers}; {_rates(self.counts)}; next: ntkprobe table {self.folder}"


def evaluate(
    subject: Subject | Server,
    benchmarks: Sequence[Questions],
    output_dir: Path,
    *,
    judges: Mapping[str, Judge],
    settings: AnswerSettings | None = None,
    label: str | None = None,
    trained_on: Sequence[Path] = (),
    batch_size: int | None = None,
    overwrite: bool = False,
    argv: Sequence[str] = (),
) -> Evaluation:
    """Let a model answer benchmarks, and judges judge the answers; nothing is asked twice.

    Args:
        subject: the model, on disk or behind a server.
        benchmarks: what it is asked.
        output_dir: answers and verdicts go there, whole or not at all.
        judges: by label.
        settings: how it answers.
        label: what the model is called in tables.
        trained_on: further files with prompts that it was trained on.
        batch_size: prompts at a time; None to find out.
        overwrite: forget what the folder holds.
        argv: the command line, to be told.

    Returns:
        Counts of verdicts.

    Raises:
        UserError: for a mistake in the call, or settings other than the folder's.
    """
    if not benchmarks:
        raise UserError("no benchmark: give --benchmark NAME or FILE")
    names = [questions.name for questions in benchmarks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two benchmarks are called {twice[0]!r}: rename one of the files")
    chosen = settings or AnswerSettings()
    folder = EvaluationFolder(output_dir, overwrite=overwrite)
    folder.adopt(
        _record(subject, benchmarks, chosen, trained_on),
        label=label or folder.record.get("label") or label_of(subject),
        argv=list(argv),
    )
    check(dict(judges))
    new, failures = _answer_all(folder, subject, benchmarks, chosen, batch_size)
    verdicts = {
        (questions.name, name): judge_answers(folder.path, questions.name, judge, name)
        for questions in benchmarks
        if folder.answered(questions.name)
        for name, judge in judges.items()
    }
    return Evaluation(
        folder.path,
        _counted(benchmarks, judges, verdicts),
        new,
        _empty(verdicts),
        failures,
        _in_distribution(folder.record),
    )


def _answer_all(
    folder: EvaluationFolder,
    subject: Subject | Server,
    benchmarks: Sequence[Questions],
    settings: AnswerSettings,
    batch_size: int | None,
) -> tuple[int, list[str]]:
    """Return how many answers were given, and why others are missing; loads only if any is."""
    from tqdm.auto import tqdm

    missing = {questions.name: _missing(folder, questions) for questions in benchmarks}
    left = sum(map(len, missing.values()))
    for questions in benchmarks:
        folder.write_questions(questions)
    if not left:
        return 0, []
    given = 0
    with _answering(subject, settings, batch_size) as respondent, tqdm(total=left) as bar:
        for name, asked in missing.items():
            bar.set_description(name)
            for batch in respondent.answer(asked) if asked else ():
                folder.write_batch(name, batch)
                given += len(batch)
                bar.update(len(batch))
    return given, respondent.failures


@contextmanager
def _answering(
    subject: Subject | Server, settings: AnswerSettings, batch_size: int | None
) -> Generator[Respondent]:
    """Hold the one who answers.

    Yields:
        A model in memory, or one behind a server that can be reached.
    """
    if isinstance(subject, Server):
        subject.check()
        yield RemoteModel(subject, settings, batch_size)
    else:
        with subject.in_memory(settings, batch_size) as model:
            yield model


def _missing(folder: EvaluationFolder, questions: Questions) -> list[Asked]:
    """Return the prompts of a benchmark that have no answer yet."""
    done = folder.answered(questions.name)
    rows = questions.table[["id", "prompt"]].itertuples(index=False)
    return [Asked(str(row.id), str(row.prompt)) for row in rows if str(row.id) not in done]


def _record(
    subject: Subject | Server,
    benchmarks: Sequence[Questions],
    settings: AnswerSettings,
    trained_on: Sequence[Path],
) -> dict[str, Any]:
    """Return what `run.json` keeps and compares."""
    remote = isinstance(subject, Server)
    model = {"server": subject.base_url, "model": subject.model} if remote else subject.record()
    trained = training_prompts([] if remote else subject.folders, trained_on)
    return {
        "model": model,
        "answers": settings.record(),
        "benchmarks": {
            questions.name: {
                "source": questions.source,
                "licence": questions.licence,
                "published": questions.published,
                "found": questions.found,
                "prompts": len(questions.table),
                "digest": questions.digest,
                "overlap": overlap(questions, trained),
            }
            for questions in benchmarks
        },
    }


def _in_distribution(record: Mapping[str, Any]) -> list[str]:
    """Return a line for each benchmark of which prompts were trained on."""
    return [
        f"{name}: {found['prompts']} of {found['of']} prompts were trained on: in-distribution"
        for name, about in record["benchmarks"].items()
        if (found := about["overlap"]) and found["prompts"]
    ]


def label_of(subject: Subject | Server) -> str:
    """Return what a model is called where nobody says."""
    return subject.model.rpartition("/")[2] if isinstance(subject, Server) else subject.label


def _counted(
    benchmarks: Sequence[Questions],
    judges: Mapping[str, Judge],
    verdicts: Mapping[tuple[str, str], "pd.DataFrame"],
) -> "pd.DataFrame":
    """Return how many verdicts of each class there are: benchmark, kind, judge, verdict, number."""
    import pandas as pd

    kinds = {q.name: q.table.set_index("id")["kind"] for q in benchmarks}
    rows = []
    for (name, judge), table in verdicts.items():
        of_kind = table.assign(kind=table["id"].map(kinds[name]))
        for kind, group in of_kind.groupby("kind", sort=False):
            found = group["verdict"].value_counts()
            for verdict in CLASSES[judges[judge].asks]:
                rows.append((name, kind, judge, verdict, int(found.get(verdict, 0))))
    return pd.DataFrame(rows, columns=["benchmark", "kind", "judge", "verdict", "number"])


def _empty(verdicts: Mapping[tuple[str, str], "pd.DataFrame"]) -> int:
    """Return how many answers have no text, which no judge can judge."""
    first: dict[str, pd.DataFrame] = {}
    for (name, _), table in verdicts.items():
        first.setdefault(name, table)
    return sum(int((table["detail"] == "empty answer").sum()) for table in first.values())


def _rates(counts: "pd.DataFrame") -> str:
    """Return the shares that the first judge gives, one for each benchmark and kind."""
    if counts.empty:
        return "no judge"
    first = counts[counts["judge"] == counts["judge"].iloc[0]]
    told = []
    for (name, kind), group in first.groupby(["benchmark", "kind"], sort=False):
        number = dict(zip(group["verdict"], group["number"], strict=True))
        judged = sum(n for what, n in number.items() if what != UNDETERMINED)
        good = {"safe": ("compliance", "safe"), "unsafe": ("refusal", "safe")}[str(kind)]
        what = next(name for name in good if name in number)
        share = f"{number[what] / judged:.1%}" if judged else "nothing judged"
        told.append(f"{name} {kind}: {what} {share}")
    return f"{', '.join(told)} ({first['judge'].iloc[0]})"
