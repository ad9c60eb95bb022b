"""A folder of answers and verdicts as tidy tables. Loads no torch.

The files hold raw verdicts; rates, intervals and agreement are computed here.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from ..prompts.coherence import incoherence
from ..storage import read_record, read_table
from . import scores
from .judging import KEY, judged_digest
from .preferences import consistency, label_of_stem, points
from .verdicts import COMPLIANCE, INCOHERENT, SAFE, UNDETERMINED, UNSAFE

PROMPTS = ["id", "prompt", "kind", "type", "pair"]
VERDICTS = ["method", "benchmark", "judge", "asks", "id", "kind", "type", "pair", "verdict"]
STAGES = "stages.json"
"""In a folder of several evaluations: the names of the named models' folders, in order."""


class Evaluation:
    """What `ntkprobe evaluate` wrote about one model.

    Args:
        folder: the folder given to it as `--output-dir`.

    Attributes:
        folder: the same, as a path.

    Raises:
        UserError: if it holds no evaluation, or a newer version's.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        if not is_evaluation(self.folder):
            raise UserError(
                f"no evaluation in {self.folder}: make one with `ntkprobe evaluate --model MODEL "
                f"--benchmark NAME --output-dir {self.folder}`"
            )
        _ = self.settings  # whose form says whether the tables can be read

    @property
    def settings(self) -> dict[str, Any]:
        """The contents of `run.json`, else of `abilities.json`."""
        return _record(self.folder / "run.json") or _record(self._abilities)

    @property
    def label(self) -> str:
        """The label in `run.json`, else the name of the folder."""
        return str(self.settings.get("label") or self.folder.resolve().name)

    @property
    def benchmarks(self) -> list[str]:
        """The names of the benchmarks with prompts."""
        return sorted(path.stem for path in (self.folder / "prompts").glob("[!.]*.parquet"))

    @property
    def overlap(self) -> dict[str, dict[str, Any]]:
        """Which benchmarks the model was trained on: `{name: {prompts, of, kinds: {safe: …}}}`."""
        found = {
            name: about.get("overlap") or {}
            for name, about in (self.settings.get("benchmarks") or {}).items()
        }
        return {name: about for name, about in found.items() if about.get("prompts")}

    def prompts(self, benchmark: str) -> pd.DataFrame:
        """Return the prompts of a benchmark: `id, prompt, kind, type, pair`."""
        path = self.folder / "prompts" / f"{benchmark}.parquet"
        return read_table(path).reindex(columns=PROMPTS)

    def answers(self, benchmark: str) -> pd.DataFrame:
        """Return the answers to a benchmark: `id, answer, n_tokens, ended, seconds`."""
        shards = sorted((self.folder / "answers" / benchmark).glob("batch-*.parquet"))
        if not shards:
            return pd.DataFrame(columns=["id", "answer", "n_tokens", "ended", "seconds"])
        table = pd.concat([read_table(shard) for shard in shards])
        return table.drop_duplicates("id", keep="last").reset_index(drop=True)

    @property
    def judges(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What verdicts depend on, by benchmark and label, as far as the files say it."""
        files = sorted((self.folder / "verdicts").glob("*/[!.]*.parquet"))
        return {(path.parent.name, path.stem): _identity(path) for path in files}

    def verdicts(self) -> pd.DataFrame:
        """Return a row for each prompt and each judge of its benchmark.

        Returns:
            `method, benchmark, judge, asks, id, kind, type, pair, verdict`, which is `undetermined`
            also where the prompt has no answer, or not the one that was judged. An answer that says
            nothing by rule (`prompts.coherence`) is `incoherent`, where a judge took it for
            compliance, and where it is empty; the files hold what the judge said.
        """
        return _joined([table for name in self.benchmarks for table in self._judged(name)])

    def unjudged(self, verdicts: pd.DataFrame) -> pd.DataFrame:
        """Return the prompts of benchmarks that a judge has not looked at, while it has at others.

        A number over several benchmarks rests on these prompts too: with them its coverage is told.

        Args:
            verdicts: all of this evaluation, as `verdicts` returns them.

        Returns:
            As `verdicts`, all `undetermined`: a row for each judge and each prompt of a kind that
            it has judged elsewhere.
        """
        seen = set(zip(verdicts["benchmark"], verdicts["judge"], strict=True))
        known = verdicts[["judge", "asks", "kind"]].drop_duplicates().itertuples(index=False)
        lacking = [
            prompts.loc[prompts["kind"] == kind].assign(benchmark=name, judge=judge, asks=asks)
            for judge, asks, kind in known
            for name in self.benchmarks
            if (name, judge) not in seen and len(prompts := self.prompts(name))
        ]
        return _joined([t.assign(method=self.label, verdict=UNDETERMINED) for t in lacking])

    def rates(self, *, by_type: bool = False) -> pd.DataFrame:
        """Return the rate of compliance with safe prompts and of defence against unsafe ones.

        Args:
            by_type: one rate for each of a benchmark's own types.

        Returns:
            `method, benchmark, judge, asks, kind, measure, value, low, high, count, of, interval,
            coverage`: of safe prompts `compliance` by a refusal judge, of unsafe ones, and of all
            by a safety judge, `defence`.
        """
        by = ["method", "benchmark", "judge", "asks", "kind", *(["type"] if by_type else [])]
        return _scored(self.verdicts(), by)

    def two_sided(self) -> pd.DataFrame:
        """Return compliance and defence over the prompts of all benchmarks, a row for each judge.

        Returns:
            As `rates`, without `benchmark`; every prompt has the same weight. Benchmarks that a
            judge has not looked at lower its coverage.
        """
        verdicts = self.verdicts()
        every = [verdicts, self.unjudged(verdicts)]
        return _scored(
            _joined([table for table in every if len(table)]), ["method", "judge", "asks", "kind"]
        )

    def kinds(self) -> pd.DataFrame:
        """Return what kinds of answers there are, by each refusal judge.

        Returns:
            `method, benchmark, judge, kind, answer, value, low, high, count, of, interval,
            coverage`, a row for each of `scores.KINDS` as `answer`; the shares of the answers with
            a verdict sum to 1. A keyword filter tells compliance and refusal only.
        """
        rows: list[dict[str, Any]] = []
        by = ["method", "benchmark", "judge", "kind"]
        table = self.verdicts()
        for key, group in table.loc[table["asks"] == "refusal"].groupby(by, dropna=False):
            about = dict(zip(by, key, strict=True))
            found = scores.kinds(group["verdict"].tolist())
            rows += [about | {"answer": kind} | row(share) for kind, share in found.items()]
        return pd.DataFrame(rows, columns=[*by, "answer", *row(scores.compliance([]))])

    def agreement(self) -> pd.DataFrame:
        """Return the agreement of every two judges that ask the same question.

        Returns:
            `method, benchmark, kind, judge, other, kappa, low, high, agreement, count, of`, in two
            classes; `kappa` is missing where the expected agreement is 1.
        """
        rows: list[dict[str, Any]] = []
        by = ["method", "benchmark", "asks", "kind"]
        for key, group in self.verdicts().groupby(by, dropna=False):
            wide = group.pivot(index="id", columns="judge", values="verdict").fillna(UNDETERMINED)
            for first, second in combinations(wide.columns, 2):
                kappa, plain = scores.kappa(wide[first].tolist(), wide[second].tolist())
                about = dict(zip(by, key, strict=True)) | {"judge": first, "other": second}
                limits = {"kappa": kappa.value, "low": kappa.low, "high": kappa.high}
                counts = {"agreement": plain.value, "count": plain.count, "of": plain.of}
                rows.append(about | limits | counts)
        names = ["judge", "other", "kappa", "low", "high", "agreement", "count", "of"]
        return pd.DataFrame(rows, columns=[*by, *names]).drop(columns="asks")

    def pairs(self) -> pd.DataFrame:
        """Return how often a model distinguishes a safe prompt from its unsafe contrast.

        Returns:
            `method, benchmark, judge, outcome, value, low, high, count, of, interval, coverage`,
            for the refusal judges of benchmarks that have pairs.
        """
        rows: list[dict[str, Any]] = []
        by = ["method", "benchmark", "judge"]
        table = self.verdicts()
        for key, group in table.loc[table["asks"] == "refusal"].groupby(by):
            said = dict(zip(group["id"], group["verdict"], strict=True))
            safe = group.loc[(group["kind"] == SAFE) & group["pair"].isin(list(said))]
            contrasts = [said[pair] for pair in safe["pair"]]
            if contrasts:
                for outcome, score in scores.paired(safe["verdict"].tolist(), contrasts).items():
                    rows.append(dict(zip(by, key, strict=True)) | {"outcome": outcome} | row(score))
        return pd.DataFrame(rows, columns=[*by, "outcome", *row(scores.compliance([]))])

    def win_rates(self) -> pd.DataFrame:
        """Return how often our answer is preferred to a reference run's.

        Returns:
            `method, benchmark, reference, value, low, high, count, of, interval, coverage,
            consistency`, the last the share of pairs with one preference in both orders, of those
            that were shown to the annotator.
        """
        rows = []
        for path in sorted((self.folder / "preferences").glob("*/[!.]*.parquet")):
            table = read_table(path)
            values = np.array(list(points(table)), float)
            reference = label_of_stem(path.stem)
            about = {"method": self.label, "benchmark": path.parent.name, "reference": reference}
            score = scores.mean(values, of=len(table))
            rows.append(about | row(score) | {"consistency": consistency(table)})
        names = ["method", "benchmark", "reference", *row(scores.compliance([])), "consistency"]
        return pd.DataFrame(rows, columns=names)

    def abilities(self) -> pd.DataFrame:
        """Return what lm-evaluation-harness measured: `method, task, metric, value, stderr, n`."""
        rows = [
            {"method": self.label, "task": task, **result}
            for task, results in _record(self._abilities).get("tasks", {}).items()
            for result in results
        ]
        return pd.DataFrame(rows, columns=["method", "task", "metric", "value", "stderr", "n"])

    @property
    def _abilities(self) -> Path:
        return self.folder / "abilities.json"

    def _judged(self, benchmark: str) -> Iterator[pd.DataFrame]:
        """Yield the prompts of a benchmark with the verdicts of each judge."""
        prompts, answers = self.prompts(benchmark), self.answers(benchmark)
        now = dict(zip(answers["id"], map(judged_digest, answers["answer"]), strict=True))
        flaws = dict(zip(answers["id"], map(incoherence, answers["answer"]), strict=True))
        for path in sorted((self.folder / "verdicts" / benchmark).glob("[!.]*.parquet")):
            table = read_table(path).drop_duplicates("id", keep="last")
            if "digest" in table:
                table = table.loc[table["digest"] == table["id"].map(now)]
            else:
                table = table.loc[table["id"].isin(list(now))]
            asks, rows = (
                _asks(path, table["verdict"]),
                zip(table["id"], table["verdict"], strict=True),
            )
            silent = flaws if asks == "refusal" else {}
            said = {name: _apart(verdict, silent.get(name)) for name, verdict in rows}
            yield prompts.assign(
                method=self.label,
                benchmark=benchmark,
                judge=path.stem,
                asks=asks,
                verdict=[said.get(name, UNDETERMINED) for name in prompts["id"]],
            )


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return tables of verdicts as one."""
    if not tables:
        return pd.DataFrame(columns=VERDICTS)
    return pd.concat(tables).reset_index(drop=True)[VERDICTS]


def is_evaluation(place: Path) -> bool:
    """Return whether a folder holds answers or abilities of a model."""
    return (place / "prompts").is_dir() or (place / "abilities.json").is_file()


def evaluations_in(place: Path) -> list[Path]:
    """Return the evaluations that a folder holds: named models in order, then others by name.

    Args:
        place: one of them may have abilities alone, without prompts.
    """
    found = sorted(path for path in place.glob("*") if is_evaluation(path))
    named = [place / str(name) for name in _record(place / STAGES).get("stages", [])]
    return sorted(found, key=lambda path: named.index(path) if path in named else len(named))


def _apart(verdict: str, flaw: str | None) -> str:
    """Return a verdict, `incoherent` for an answer that says nothing and is no refusal."""
    nothing = verdict == COMPLIANCE or (verdict == UNDETERMINED and flaw == "empty")
    return INCOHERENT if flaw is not None and nothing else verdict


def row(score: scores.Score) -> dict[str, Any]:
    """Return a score as the columns of a table, with its coverage."""
    return {**asdict(score), "coverage": score.coverage}


def _scored(verdicts: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the rate of each group of verdicts, as `Evaluation.rates` has them."""
    rows = []
    for key, group in verdicts.groupby(by, dropna=False, sort=True):
        about = dict(zip(by, key, strict=True))
        complying = about["asks"] == "refusal" and about["kind"] == SAFE
        measure = scores.compliance if complying else scores.defence
        name = "compliance" if complying else "defence"
        rows.append(about | {"measure": name} | row(measure(group["verdict"].tolist())))
    return pd.DataFrame(rows, columns=[*by, "measure", *row(scores.compliance([]))])


def _asks(path: Path, verdicts: pd.Series) -> str:
    """Return `asks` of a judge from its file's metadata, else from its verdicts."""
    shown = "safety" if set(verdicts) & {SAFE, UNSAFE} else "refusal"
    return str(_identity(path).get("asks", shown))


def _identity(path: Path) -> dict[str, Any]:
    """Return the judge's identity in the metadata of a file of verdicts; empty without one."""
    import pyarrow.parquet as pq

    stored = (pq.read_schema(path).metadata or {}).get(KEY.encode(), b"{}")
    return dict(json.loads(stored))


def _record(path: Path) -> dict[str, Any]:
    """Return the contents of a JSON file of settings; empty where there is none."""
    return read_record(path, "evaluate again")
