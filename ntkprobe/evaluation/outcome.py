"""The result of one call of `evaluate`, and the lines that the command prints about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..prompts.reasoning import answered
from .results import Evaluation

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Outcome:
    """The result of one call; rates are read from the folder.

    Attributes:
        folder: of the evaluation.
        benchmarks: those of this call that have answers.
        judges: those of this call, by label.
        new: answers given in this call.
        failures: why answers are missing.
        unjudged: why verdicts are missing that another run may have.
    """

    folder: Path
    benchmarks: list[str]
    judges: tuple[str, ...]
    new: int = 0
    failures: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """0, or 1 where answers or verdicts are missing."""
        return 1 if self.failures or self.unjudged else 0

    @cached_property
    def rates(self) -> "pd.DataFrame":
        """The rates of this call's benchmarks and judges (`Evaluation.rates`)."""
        table = Evaluation(self.folder).rates()
        ours = table["benchmark"].isin(self.benchmarks) & table["judge"].isin(self.judges)
        return table[ours]

    def lines(self) -> list[str]:
        """Return a line for each rate, and the caveats of reading them."""
        rates = [_line(row) for row in self.rates.to_dict("records")]
        return [*rates, *self._empty(), *self._in_distribution()]

    def closing_line(self) -> str:
        """Return one line: what was done, and the next command."""
        answers = f"{self.new} new answers in {self.folder}"
        missing = [
            f"{len(reasons)} {what} missing ({reasons[0]})"
            for what, reasons in (("are", self.failures), ("verdicts are", self.unjudged))
            if reasons
        ]
        if missing:
            return f"{answers}; {'; '.join(missing)}: run the same command again"
        return f"{answers}; {self._first_rates()}; next: ntkprobe table {self.folder}"

    def _first_rates(self) -> str:
        """Return the first judge's rates, one for each benchmark and kind."""
        if not self.judges:
            return "not judged"
        first = self.rates[self.rates["judge"] == self.judges[0]].to_dict("records")
        rates = [f"{r['benchmark']} ({r['kind']}) {r['measure']} {_percent(r)}" for r in first]
        return f"{', '.join(rates)} by {self.judges[0]}"

    def _empty(self) -> list[str]:
        """Return a line for each benchmark with empty answers or unfinished reasoning."""
        read = Evaluation(self.folder)
        found = {
            name: int((read.answers(name)["answer"].str.strip() == "").sum())
            for name in self.benchmarks
        }
        empty = [
            f"{name}: {n} answers are empty: undetermined for every judge, incoherent in tables"
            for name, n in found.items()
            if n
        ]
        endless = {
            name: sum(answered(text) is None for text in read.answers(name)["answer"])
            for name in self.benchmarks
        }
        return empty + [
            f"{name}: the reasoning of {n} answers never ends, undetermined for every judge: "
            "more --max-new-tokens may let them end"
            for name, n in endless.items()
            if n
        ]

    def _in_distribution(self) -> list[str]:
        """Return a line for each benchmark with prompts that the model was trained on."""
        found = Evaluation(self.folder).overlap
        return [
            f"{name}: {found[name]['prompts']} of {found[name]['of']} prompts were trained on: "
            "its rates are in-distribution"
            for name in self.benchmarks
            if name in found
        ]


def _line(rate: Mapping[Any, Any]) -> str:
    """Return one rate with its interval and the number of prompts."""
    place = f"{rate['benchmark']} ({rate['kind']})"
    rest = f"{rate['count']} of {rate['of']} prompts"
    if not rate["count"]:
        return f"{place:<28} {rate['judge']:<20} nothing could be judged: {rest}"
    limits = f"[{rate['low']:.1%}, {rate['high']:.1%}]"
    return f"{place:<28} {rate['judge']:<20} {rate['measure']} {_percent(rate)} {limits}, {rest}"


def _percent(rate: Mapping[Any, Any]) -> str:
    """Return a rate's value."""
    return f"{rate['value']:.1%}" if rate["count"] else "unknown"
