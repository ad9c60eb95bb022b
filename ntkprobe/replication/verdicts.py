"""Inequalities, their bootstrap intervals over prompts and seeds, and verdicts on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from ..statistics import RESAMPLES, bootstrap_redrawn

Word = Literal["holds", "does not", "mixed"]


class Draw:
    """The rows that a resample draws from each set of prompts, the same for all statistics.

    Args:
        generator: draws; None takes every row once, which gives the number itself.
    """

    def __init__(self, generator: np.random.Generator | None = None) -> None:
        self.generator = generator
        self._rows: dict[tuple[str, int], np.ndarray] = {}

    def rows(self, name: str, number: int) -> np.ndarray:
        """Return row numbers of a set, drawn at the first call for this set."""
        if self.generator is None:
            return np.arange(number)
        key = (name, number)
        if key not in self._rows:
            self._rows[key] = self.generator.integers(number, size=number)
        return self._rows[key]


Statistic = Callable[[Draw], float]


@dataclass(frozen=True)
class Inequality:
    """A statistic and the side of a threshold that it must be on.

    Attributes:
        about: what the number is.
        statistic: computes it on a draw of the prompts.
        threshold: that it is compared with.
        above: whether it has to be above.
        decidable: whether there is anything to decide; if not, the verdict is mixed.
    """

    about: str
    statistic: Statistic
    threshold: float
    above: bool = True
    decidable: bool = True

    @property
    def side(self) -> str:
        """The threshold as text."""
        return f"{'>' if self.above else '<'} {self.threshold:g}"


@dataclass(frozen=True)
class Finding:
    """The value of an inequality's statistic, its interval and verdict.

    Attributes:
        about: what the number is.
        side: the side of the threshold that it must be on.
        value: of the statistic; NaN where it could not be computed.
        low: lower end of its 95 % interval.
        high: upper end.
        word: the verdict.
    """

    about: str
    side: str
    value: float
    low: float
    high: float
    word: Word


def of_seeds(
    by_seed: Mapping[int, Sequence[Inequality]], resamples: int = RESAMPLES
) -> tuple[dict[int, list[Finding]], list[Finding]]:
    """Return the findings of every seed, and the pooled ones.

    Args:
        by_seed: the same inequalities for every seed.
        resamples: of the bootstrap.

    Returns:
        Findings by seed, and of the mean over seeds, whose resamples draw seeds as well.
    """
    per_seed = {
        seed: [_finding([each], resamples) for each in inequalities]
        for seed, inequalities in by_seed.items()
    }
    pooled = [_finding(each, resamples) for each in zip(*by_seed.values(), strict=True)]
    return per_seed, pooled


def overall(findings: Sequence[Finding]) -> Word:
    """Return the verdict on a hypothesis from those on its inequalities."""
    words = [finding.word for finding in findings]
    if words and all(word == "holds" for word in words):
        return "holds"
    return "does not" if "does not" in words else "mixed"


def word_of(low: float, high: float, threshold: float, above: bool) -> Word:
    """Return the verdict on an interval: NaN ends are never clear."""
    if (low > threshold) if above else (high < threshold):
        return "holds"
    if (high < threshold) if above else (low > threshold):
        return "does not"
    return "mixed"


def _finding(of_seeds: Sequence[Inequality], resamples: int) -> Finding:
    """Return the mean of an inequality's number over seeds, with its interval and verdict."""
    inequality, statistics = of_seeds[0], [each.statistic for each in of_seeds]
    value = float(np.mean([statistic(Draw()) for statistic in statistics]))
    low, high = np.nan, np.nan
    if np.isfinite(value):
        low, high = bootstrap_redrawn(partial(_resampled, statistics), resamples=resamples)
    verdict = word_of(low, high, inequality.threshold, inequality.above)
    if not all(each.decidable for each in of_seeds):
        verdict = "mixed"
    return Finding(inequality.about, inequality.side, value, low, high, verdict)


def _resampled(statistics: Sequence[Statistic], generator: np.random.Generator) -> float:
    """Return the mean over resampled seeds, on resampled prompts."""
    draw = Draw(generator)
    seeds = generator.integers(len(statistics), size=len(statistics))
    return float(np.mean([statistics[seed](draw) for seed in seeds]))
