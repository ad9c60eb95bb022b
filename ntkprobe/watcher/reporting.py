"""The outcome of measuring a run (new, known and failed steps), and sinks for its group means.

`--report-to NAME` shows the means in the sink of that name, step by step. A sink shows what the
tables hold and holds nothing of its own; it may be deleted at any time.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pandas as pd

from .. import plugins
from ..errors import UserError, one_line
from ..trajectory import Trajectory
from . import sinks


@dataclass
class Outcome:
    """What became of a run's checkpoints.

    Attributes:
        folder: where the tables are.
        new: steps measured now.
        known: steps that had been measured before.
        failed: why, by step, for those that could not be measured.
        total: how many steps the folder holds now.
        interrupted: whether the user stopped it.
        names: what steps are called, where these are stages.
    """

    folder: Path
    new: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    total: int = 0
    interrupted: bool = False
    names: dict[int, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The exit status."""
        return 130 if self.interrupted else 1 if self.failed else 0

    def add(self, other: "Outcome") -> None:
        """Count what became of other checkpoints of the same run."""
        self.new += other.new
        self.known += other.known
        self.failed |= other.failed

    def conclude(self) -> None:
        """Print a line on stderr for each failure.

        Raises:
            UserError: if nothing could be measured, and why.
        """
        failed = list(self.failed.values())
        if failed and not (self.new or self.known):
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise UserError(f"nothing could be measured: {failed[0]}{more}")
        for step, reason in self.failed.items():
            name = self.names.get(step, f"step {step}")
            print(one_line(f"ntkprobe: {name} failed: {reason}"), file=sys.stderr)

    def closing_line(self) -> str:
        """Return what there is now, and what to do next."""
        what = "stage" if self.names else "step"
        count = f"{self.total} {what}{'' if self.total == 1 else 's'} in {self.folder}"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        if self.interrupted:
            return f"{count}, {len(self.new)} new{failed}; stopped: run the same command to go on"
        if not self.total:
            return f"{count}{failed}"
        return f"{count}, {len(self.new)} new{failed}: ntkprobe figures {self.folder}"


class Sink(Protocol):
    """Something that shows the group means of a step."""

    def __init__(self, folder: Path, worker: str) -> None: ...

    def show(self, step: int, values: dict[str, float]) -> None:
        """Show values by name."""

    def close(self) -> None:
        """Write what is still in memory."""


class Sinks:
    """Several sinks of one folder, which begin with what the folder holds already.

    Args:
        names: of modules in `sinks/`.
        folder: the folder of measurements.
        worker: whose reports these are, where several processes share the folder.
    """

    def __init__(self, names: Sequence[str], folder: Path, worker: str) -> None:
        kinds = [plugins.load(sinks, name) for name in names]
        self.folder = folder
        self._sinks: list[Sink] = [kind(folder, worker) for kind in kinds]
        if self._sinks and (folder / "prompts.parquet").is_file():
            self._show(Trajectory(folder))

    def show(self, step: int) -> None:
        """Show a step that was just measured."""
        if self._sinks:
            self._show(Trajectory(self.folder, steps=[step]))

    def close(self) -> None:
        """Write what is still in memory."""
        for sink in self._sinks:
            sink.close()

    def _show(self, run: Trajectory) -> None:
        """Show every step of a trajectory."""
        table = group_values(run)
        for step, rows in table.groupby("step"):
            for sink in self._sinks:
                sink.show(int(str(step)), dict(zip(rows["name"], rows["value"], strict=True)))


def group_values(run: Trajectory) -> pd.DataFrame:
    """Return the group means of all steps: `step, name, value`.

    Args:
        run: measurements.

    Returns:
        Rows `similarity/normal-toxic` (observed, updated) and, for each group and reduction,
        `refusal_probability/toxic-literal`, and `refusal_rate/toxic` where answers were generated.
    """
    kernel = run.group_means(resamples=0)
    pairs = kernel["observed_group"] + "-" + kernel["updated_group"]
    similarity = kernel.assign(name="similarity/" + pairs, value=kernel["similarity"])
    means = run.refusal().groupby(["step", "group", "reduction"], as_index=False, sort=False)
    refusal = means[["probability", "refuses"]].mean()
    ends = refusal["group"] + "-" + refusal["reduction"]
    probability = refusal.assign(name="refusal_probability/" + ends, value=refusal["probability"])
    rate = refusal.assign(name="refusal_rate/" + refusal["group"], value=refusal["refuses"])
    tables = [t[["step", "name", "value"]] for t in (similarity, probability, rate)]
    rows = pd.concat([t.astype({"value": "float64"}) for t in tables if len(t)] or tables)
    return rows.dropna().drop_duplicates(["step", "name"])
