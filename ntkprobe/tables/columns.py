"""Columns of tables 1, 3, 4 and 5: benchmarks, kinds of prompts, and the judges shown."""

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
        title = _APART.get(name, name)
        yield Column(f"{name}_{kind}", f"{title} ({kind})" if both else title, (name,), kind)


def column_verdicts(verdicts: pd.DataFrame, column: Column) -> pd.DataFrame:
    """Return the verdicts about a column's prompts."""
    named = verdicts["benchmark"].isin(list(column.benchmarks))
    return verdicts.loc[named & (verdicts["kind"] == column.kind)]


def score(verdicts: Iterable[str], column: Column) -> dict[str, Any]:
    """Return a cell: compliance with safe prompts, defence against unsafe ones."""
    said = list(verdicts)
    found = scores.compliance(said) if column.kind == "safe" else scores.defence(said)
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
