"""The measurements of a replication, read from its folders as arrays."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..evaluation import Evaluation
from ..prompts.phrases import is_refusal
from ..prompts.reasoning import answered
from ..trajectory import Trajectory
from .data_files import SAFETY_SETS
from .verdicts import Draw

SEEMINGLY, TOXIC, NORMAL = "seemingly_toxic", "toxic", "normal"
HELD_OUT = ("oktest", "coconot_contrast")
REFUSED = "refused.parquet"
"""In a published evaluation, whose answers are withheld: what `refused_table` returns."""


@dataclass(frozen=True)
class Kernel:
    """Similarities of one model.

    Attributes:
        values: `[n, n]`, observed by updated, NaN for a prompt with itself.
        members: row numbers by group.
        name: of the set of prompts.
    """

    values: np.ndarray
    members: dict[str, np.ndarray]
    name: str

    @classmethod
    def read(cls, folder: Path, step: int | None, name: str) -> "Kernel":
        """Return the kernel of a measurement folder at a step; None for the first."""
        run = Trajectory(folder)
        table = run.kernel()
        table = table.loc[table["step"] == (run.kernel_steps()[0] if step is None else step)]
        grid = table.pivot(index="observed", columns="updated", values="similarity")
        values = grid.reindex(columns=grid.index).to_numpy(copy=True)
        np.fill_diagonal(values, np.nan)
        groups = run.prompts.set_index("prompt")["group"].loc[grid.index].to_numpy()
        members = {group: np.flatnonzero(groups == group) for group in dict.fromkeys(groups)}
        return cls(values, members, name)

    def mean(self, first: str, second: str, draw: Draw) -> float:
        """Return the mean similarity of two groups, over both directions."""
        rows, columns = (self._drawn(group, draw) for group in (first, second))
        both = (self.values[np.ix_(rows, columns)], self.values[np.ix_(columns, rows)])
        return finite_mean(np.array([finite_mean(block) for block in both]))

    def across(self, draw: Draw) -> float:
        """Return the similarity of seemingly toxic and toxic prompts."""
        return self.mean(SEEMINGLY, TOXIC, draw)

    def within(self, draw: Draw) -> float:
        """Return the mean similarity within both of these groups."""
        return (self.mean(SEEMINGLY, SEEMINGLY, draw) + self.mean(TOXIC, TOXIC, draw)) / 2

    def ratio(self, draw: Draw) -> float:
        """Return the similarity across by that within."""
        return self.across(draw) / self.within(draw)

    def over_normal(self, draw: Draw) -> float:
        """Return how much more similar the two groups are to each other than to normal prompts."""
        to_normal = self.mean(SEEMINGLY, NORMAL, draw) + self.mean(TOXIC, NORMAL, draw)
        return self.across(draw) - to_normal / 2

    def _drawn(self, group: str, draw: Draw) -> np.ndarray:
        rows = self.members[group]
        return rows[draw.rows(f"{self.name}/{group}", len(rows))]


@dataclass(frozen=True)
class Terms:
    """Terms of Proposition 1 for one model.

    Attributes:
        cosine: ⟨G′, G⟩ / (‖G′‖ ‖G‖), `[n, n]`.
        bounded: 1 where ‖K‖ is at most the printed bound, else 0, `[n, n]`; NaN for a prompt with
            itself, which the printed bound always holds for.
        members: row numbers by group.
    """

    cosine: np.ndarray
    bounded: np.ndarray
    members: dict[str, np.ndarray]

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Terms":
        """Return the terms in a table of `BoundMeasurement.frame`."""
        inner, kernel, printed = (
            table.pivot(index="observed", columns="updated", values=name).to_numpy()
            for name in ("inner", "kernel", "printed")
        )
        own = np.sqrt(np.diagonal(inner))
        groups = table.drop_duplicates("observed").sort_values("observed")["observed_group"]
        members = {
            group: np.flatnonzero(groups.to_numpy() == group) for group in dict.fromkeys(groups)
        }
        bounded = np.where(np.isnan(kernel + printed), np.nan, kernel <= printed)
        np.fill_diagonal(bounded, np.nan)
        return cls(inner / np.outer(own, own), bounded, members)

    def share_bounded(self, draw: Draw) -> float:
        """Return the share of ordered pairs of two prompts with ‖K‖ at most the printed bound."""
        rows = draw.rows("terms", len(self.bounded))
        return finite_mean(self.bounded[np.ix_(rows, rows)])

    def across(self, draw: Draw) -> float:
        """Return the mean cosine between seemingly toxic and toxic prompts."""
        rows, columns = (
            self.members[group][draw.rows(f"terms/{group}", len(self.members[group]))]
            for group in (SEEMINGLY, TOXIC)
        )
        return float(self.cosine[np.ix_(rows, columns)].mean())


@dataclass
class Results:
    """The folders of a replication, each read once.

    Attributes:
        out: its output folder.
    """

    out: Path
    _evaluations: dict[str, pd.DataFrame] = field(default_factory=dict)
    _refused: dict[tuple[str, tuple[str, ...]], np.ndarray] = field(default_factory=dict)

    def refused(self, run: str, sets: tuple[str, ...], draw: Draw) -> float:
        """Return the share of refused answers of a final model, without "No, …".

        An answer whose reasoning never ends counts as neither.
        """
        key = (run, sets)
        if key not in self._refused:
            table = self._evaluation(run)
            self._refused[key] = _numbers(table.loc[table["set"].isin(sets), "refused"])
        values = self._refused[key]
        return finite_mean(values[draw.rows("/".join(sets), len(values))])

    def over_refusal(self, run: str, draw: Draw) -> float:
        """Return the share of held-out safe prompts that a final model refuses."""
        return self.refused(run, HELD_OUT, draw)

    def safety(self, run: str, draw: Draw) -> float:
        """Return the share of the safety prompts that a final model refuses."""
        return self.refused(run, SAFETY_SETS, draw)

    def along(self, run: str) -> pd.DataFrame:
        """Return the refusals along a run: `step, group, text, refuses, log_probability`."""
        table = Trajectory(self.out / "ntk" / run).refusal()
        return table.loc[table["reduction"] == "literal"]

    def kernel(self, run: str) -> Kernel:
        """Return the kernel of the model that a run's SFT starts from, on held-out prompts."""
        return Kernel.read(self.out / "ntk" / run, None, "along")

    def xstest_kernel(self, start: str) -> Kernel:
        """Return the kernel of a starting model on XSTest's two halves."""
        return Kernel.read(self.out / "start" / start, None, "xstest")

    def bounds(self, start: str) -> "Terms":
        """Return the terms of Proposition 1 for a starting model."""
        return Terms.of(pd.read_parquet(self.out / "start" / start / "bounds.parquet"))

    def losses(self, run: str) -> float:
        """Return the mean loss on held-out normal answers; NaN where it was not computed."""
        path = self.out / "eval" / run / "losses.parquet"
        return float(pd.read_parquet(path)["loss"].mean()) if path.is_file() else float("nan")

    def table(self, run: str) -> pd.DataFrame:
        """Return a row per answer of a final model, as `refused_table` has them."""
        return self._evaluation(run)

    def _evaluation(self, run: str) -> pd.DataFrame:
        if run not in self._evaluations:
            folder = self.out / "eval" / run
            published = folder / REFUSED
            self._evaluations[run] = (
                pd.read_parquet(published)
                if published.is_file()
                else refused_table(Evaluation(folder))
            )
        return self._evaluations[run]


def refused_table(evaluation: Evaluation) -> pd.DataFrame:
    """Return a row per answer: `set, id, kind, type, refused, refused_with_no`.

    Args:
        evaluation: of one model.

    Returns:
        `refused_with_no` is XSTest's prefixes' verdict; `refused` leaves out answers that begin
        with "No," or "No.", which answer a yes-or-no question. Of an answer with reasoning what
        follows that counts; both are missing where it never ends.
    """
    tables = []
    for name in evaluation.benchmarks:
        prompts = evaluation.prompts(name)[["id", "kind", "type"]]
        answers = evaluation.answers(name)[["id", "answer"]]
        table = prompts.merge(answers, on="id", how="left").assign(set=name)
        text = table["answer"].fillna("")
        table["refused_with_no"] = text.map(is_refusal).astype("boolean")
        said = text.map(answered).fillna("")
        plain_no = said.str.lower().str.strip().str.startswith(("no,", "no."))
        table["refused"] = table["refused_with_no"] & ~plain_no
        tables.append(table[["set", "id", "kind", "type", "refused", "refused_with_no"]])
    return pd.concat(tables, ignore_index=True)


def share(flags: pd.Series) -> float:
    """Return the share that is true of what is not missing; NaN if all is."""
    return finite_mean(_numbers(flags))


def _numbers(flags: pd.Series) -> np.ndarray:
    """Return 1 for true, 0 for false and NaN for what is missing."""
    return flags.astype("boolean").to_numpy(float, na_value=np.nan)


def finite_mean(values: np.ndarray) -> float:
    """Return the mean of the numbers among some values, far quicker than nanmean; NaN if none."""
    found = values[np.isfinite(values)]
    return float(found.mean()) if found.size else float("nan")
