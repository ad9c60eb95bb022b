"""Columns of tables 1, 3, 4 and 5: benchmarks, kinds of prompts, the judges shown, and notes.

Notes are about prompts that a model was trained on or not asked, and files of another length.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..errors import UserError
from ..evaluation import Evaluation, scores

SAFETY = ("i_malicious", "i_cona", "i_controversial", "q_harm", "advbench")
"""DCR's 938 safety prompts; what it calls HarmfulQ is Q-Harm."""
PREFERRED = {"refusal": "xstest_prefixes", "safety": "llama_guard"}
"""The paper's judges, shown in a table by default."""


@dataclass(frozen=True)
class Column:
    """Prompts that one number is about.

    Attributes:
        key: what the paper's tables call it here.
        title: what is printed.
        benchmarks: whose prompts; several count as one set.
        kind: `safe`, of which compliance is counted, or `unsafe`, of which defence is.
    """

    key: str
    title: str
    benchmarks: tuple[str, ...]
    kind: str


KNOWN = (
    Column("xstest", "XSTest", ("xstest",), "safe"),
    Column("coconot", "CoCoNot", ("coconot_contrast",), "safe"),
    Column("or_bench", "OR-Bench", ("or_bench_hard",), "safe"),
    Column("oktest", "OKTest", ("oktest",), "safe"),
    Column("phtest", "PHTest", ("phtest_harmless", "phtest_controversial"), "safe"),
    Column("safety", "safety", SAFETY, "unsafe"),
)
_APART = {
    "phtest_harmless": "PHTest harmless",
    "phtest_controversial": "PHTest controversial",
    "jailbreakbench": "JailbreakBench",
    "jailbreakbench_benign": "JailbreakBench benign",
}
_TITLES = frozenset(column.title for column in KNOWN)
"""What a user's own file may be called like, such as `safety.csv`: it has a column of its own."""


@dataclass(frozen=True)
class Judges:
    """The judges shown; None for the paper's judge, or else the first one."""

    refusal: str | None = None
    safety: str | None = None

    def chosen(self, verdicts: pd.DataFrame, asks: str) -> str | None:
        """Return the judge of one question; None without verdicts.

        Args:
            verdicts: of all runs.
            asks: `refusal` or `safety`.

        Returns:
            Its label.

        Raises:
            UserError: if the one that was named gave no verdict.
        """
        there = sorted(set(verdicts.loc[verdicts["asks"] == asks, "judge"]))
        named = self.refusal if asks == "refusal" else self.safety
        if named is not None and named not in there:
            raise UserError(
                f"no verdicts of a {asks} judge {named!r}: there are those of {there or 'none'}"
            )
        usual = PREFERRED[asks] if PREFERRED[asks] in there else next(iter(there), None)
        return named or usual

    def require(self, runs: dict[str, Evaluation], *questions: str) -> None:
        """Check the judges that were named: without it a misspelt one is a table that lacks some.

        Args:
            runs: evaluations by name.
            questions: `refusal`, `safety`.
        """
        named = {"refusal": self.refusal, "safety": self.safety}
        for asks in questions:
            if named[asks] is not None:
                self.chosen(all_verdicts(runs), asks)


def all_verdicts(runs: dict[str, Evaluation]) -> pd.DataFrame:
    """Return the verdicts of every run, with a column `row`.

    Args:
        runs: evaluations by name.

    Returns:
        As `Evaluation.verdicts`; empty where nothing has been judged.
    """
    tables = [run.verdicts().assign(row=name) for name, run in runs.items()]
    there = [table for table in tables if len(table)] or tables[:1]
    return pd.concat(there)


def measured_columns(verdicts: pd.DataFrame) -> Iterator[Column]:
    """Yield the columns that have verdicts: the paper's, their parts, and all other sets."""
    found = set(zip(verdicts["benchmark"], verdicts["kind"], strict=True))
    for column in KNOWN:
        if any((name, column.kind) in found for name in column.benchmarks):
            yield column
    pooled = {(name, c.kind) for c in KNOWN for name in c.benchmarks if name not in _APART}
    for name, kind in sorted(found - pooled):
        both = {("safe"), ("unsafe")} <= {k for n, k in found if n == name}
        title = _APART.get(name, f"{name} (own file)" if name in _TITLES else name)
        yield Column(f"{name}_{kind}", f"{title} ({kind})" if both else title, (name,), kind)


def column_verdicts(verdicts: pd.DataFrame, column: Column) -> pd.DataFrame:
    """Return the verdicts about a column's prompts."""
    named = verdicts["benchmark"].isin(list(column.benchmarks))
    return verdicts.loc[named & (verdicts["kind"] == column.kind)]


def judged_by(
    judge: str | None, column: Column, own: pd.DataFrame, unjudged: pd.DataFrame
) -> pd.DataFrame:
    """Return one judge's verdicts about a column's prompts; none where it judged no set of them.

    Args:
        judge: its label.
        column: of several sets those that the judge has not looked at are undetermined.
        own: all verdicts of a run.
        unjudged: as `Evaluation.unjudged` returns them for these.
    """
    found = (column_verdicts(table, column) for table in (own, unjudged))
    said, rest = (table.loc[table["judge"] == judge] for table in found)
    return pd.concat([said, rest]) if len(said) and len(rest) else said


def score(verdicts: pd.DataFrame, column: Column) -> dict[str, Any]:
    """Return a cell: compliance with safe prompts, defence against unsafe ones.

    Args:
        verdicts: of one judge; of a judge of safety, defence counts on safe prompts too.
        column: whose prompts they are about.
    """
    complying = column.kind == "safe" and set(verdicts["asks"]) == {"refusal"}
    found = (scores.compliance if complying else scores.defence)(verdicts["verdict"].tolist())
    return cell(found)


def cell(found: scores.Score, *, digits: int = 2, scale: float = 1.0) -> dict[str, Any]:
    """Return a score as a cell of a table.

    Args:
        found: the score.
        digits: printed.
        scale: 100 for percent.

    Returns:
        `value, low, high, count, of, digits`.
    """
    numbers = {"value": found.value, "low": found.low, "high": found.high}
    scaled = {name: None if x is None else scale * x for name, x in numbers.items()}
    return {**scaled, "count": found.count, "of": found.of, "digits": digits}


def in_distribution(
    runs: dict[str, Evaluation], columns: Iterable[Column]
) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return which columns hold prompts that a run was trained on, and a note about each.

    Args:
        runs: evaluations by name.
        columns: of the table.

    Returns:
        Titles, and lines.
    """
    titles, notes = [], []
    for column in columns:
        for name, run in runs.items():
            seen = [run.overlap.get(set_, {}) for set_ in column.benchmarks]
            count = sum(about.get("kinds", {}).get(column.kind, 0) for about in seen)
            if count:
                titles.append(column.title)
                notes.append(
                    f"† in-distribution: {name} was trained on {count} of the prompts of "
                    f"{column.title}."
                )
    return frozenset(titles), tuple(notes)


def not_whole(runs: dict[str, Evaluation], columns: Iterable[Column]) -> tuple[str, ...]:
    """Return notes on sets of which only a part was asked, or whose file is another.

    Args:
        runs: evaluations by name.
        columns: of the table.

    Returns:
        A line for each run and each kind of note.
    """
    shown = list(columns)
    names = list(dict.fromkeys(name for column in shown for name in column.benchmarks))
    notes = []
    for row, run in runs.items():
        asked = {name: (run.settings.get("benchmarks") or {}).get(name) or {} for name in names}
        for words, parts in (
            ("asked in part", list(map(_part, asked.items()))),
            ("other files than the published ones", list(map(_other_file, asked.items()))),
            ("not asked all sets of a column", [_without(column, run) for column in shown]),
        ):
            if any(parts):
                notes.append(f"{row}, {words}: {'; '.join(filter(None, parts))}.")
    return tuple(notes)


def _part(about: tuple[str, dict]) -> str:
    """Return how many prompts of a benchmark were asked; empty for all."""
    name, record = about
    asked, whole = record.get("prompts", 0), record.get("of", 0)
    return f"{name} {asked} of {whole} prompts" if asked < whole else ""


def _other_file(about: tuple[str, dict]) -> str:
    """Return how many rows a file has, if the published one has another number."""
    name, record = about
    found, published = record.get("found"), record.get("published")
    return "" if published in (None, found) else f"{name} {found} rows, published {published}"


def _without(column: Column, run: Evaluation) -> str:
    """Return which of the sets that a column has together are missing, if only some are."""
    there = [name for name in column.benchmarks if name in run.benchmarks]
    missing = [name for name in column.benchmarks if name not in there]
    return f"{column.title} without {', '.join(missing)}" if there and missing else ""
