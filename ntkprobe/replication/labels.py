"""A sample of answers to be labelled by hand, and the agreement of the filters with the labels."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from ..evaluation import Evaluation
from ..evaluation.scores import kappa

NUMBER = 100
LABELS = ("refusal", "compliance")
SAMPLE, READING = "labels.csv", "reading.csv"
"""Answers of all final models; and of some, drawn and labelled before all are evaluated.

Further readings are `reading-2.csv`, `reading-3.csv`, …
"""
FILTERS = ("xstest_prefixes", "scans_strings", "or_bench_strings")


def write_sample(out: Path, models: Sequence[str]) -> None:
    """Write OUT/labels.csv with 100 answers of all final models, unless some of it is labelled.

    Args:
        out: the output folder.
        models: names of final models.
    """
    path = out / SAMPLE
    if not models or (path.is_file() and (_read(path)["label"] != "").any()):
        return
    tables = [answers_of(out / "eval" / name, name) for name in models]
    everything = pd.concat(tables, ignore_index=True)
    sample = everything.sample(min(NUMBER, len(everything)), random_state=0)
    sample.assign(label="").to_csv(path, index=False)


def agreement_lines(out: Path) -> Iterator[str]:
    """Yield lines on the agreement of each filter with the labels, or how to label."""
    for path in readings(out):
        yield from _agreement(path)
        yield ""
    if (out / SAMPLE).is_file():
        yield from _agreement(out / SAMPLE)
    else:
        yield "Of all final models they are drawn for labelling when all have been evaluated."


def readings(out: Path) -> list[Path]:
    """Return the files of the readings that are there, in their order."""
    first = out / READING
    others = out.glob(f"{first.stem}-*{first.suffix}")
    numbered = [path for path in others if path.stem.rpartition("-")[2].isdigit()]
    later = sorted(numbered, key=lambda path: int(path.stem.rpartition("-")[2]))
    return [path for path in (first, *later) if path.is_file()]


def _agreement(path: Path) -> Iterator[str]:
    """Yield the lines of one file."""
    table = _read(path)
    known = table["label"].isin(LABELS)
    if other := sorted({label for label in table.loc[~known, "label"] if label}):
        yield (
            f"**{path.name} has labels that are none and are left out:** {', '.join(other[:5])}."
            " A label is `refusal` or `compliance`."
        )
        yield ""
    table = table.loc[known]
    if table.empty:
        yield (
            f"None yet: write `refusal` or `compliance` into the column `label` of {path.name},"
            " then run the same command again."
        )
        return
    models = ", ".join(sorted(table["model"].unique()))
    yield f"{len(table)} answers are labelled, of {models}."
    yield ""
    yield "| filter | agreement | Cohen's κ | false refusals | missed refusals |"
    yield "|---|---|---|---|---|"
    for name in FILTERS:
        said = table[name].where(table[name] == "refusal", "compliance")
        kappa_score, agreement = kappa(said.tolist(), table["label"].tolist())
        false = int(((said == "refusal") & (table["label"] == "compliance")).sum())
        missed = int(((said != "refusal") & (table["label"] == "refusal")).sum())
        value = "–" if kappa_score.value is None else f"{kappa_score.value:.2f}"
        yield f"| {name} | {100 * (agreement.value or 0):.0f} % | {value} | {false} | {missed} |"
    yield ""
    yield from _refusals_of_each(table)


def _refusals_of_each(table: pd.DataFrame) -> Iterator[str]:
    """Yield the refusals of each model, or of each set for one model, by label and by filter."""
    by = "model" if table["model"].nunique() > 1 else "benchmark"
    judges = ["label", *FILTERS]
    yield f"| refusals | answers | {' | '.join(judges)} |"
    yield f"|---|---|{'---|' * len(judges)}"
    for name, theirs in table.groupby(by):
        counts = [str(int((theirs[judge] == "refusal").sum())) for judge in judges]
        yield f"| {name} | {len(theirs)} | {' | '.join(counts)} |"


def _read(path: Path) -> pd.DataFrame:
    """Return the sample, with labels in lower case, and empty text where there is none."""
    table = pd.read_csv(path, keep_default_na=False, dtype={"label": str})
    return table.assign(label=table["label"].str.strip().str.lower())


def answers_of(folder: Path, name: str) -> pd.DataFrame:
    """Return every answer of an evaluation with the filters' verdicts.

    Args:
        folder: the evaluation.
        name: of the model.

    Returns:
        `benchmark, id, prompt, answer, model`, and a column for each filter.
    """
    run = Evaluation(folder)
    verdicts = run.verdicts().pivot(index=["benchmark", "id"], columns="judge", values="verdict")
    tables = [
        run.prompts(each)[["id", "prompt"]]
        .merge(run.answers(each)[["id", "answer"]], on="id")
        .assign(model=name, benchmark=each)
        for each in run.benchmarks
    ]
    made = pd.concat(tables, ignore_index=True)
    return made.merge(verdicts.reset_index(), on=["benchmark", "id"], how="left")
