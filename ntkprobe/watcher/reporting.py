"""A live view: `--report-to NAME` shows group means in the sink of that name, step by step.

A sink shows what the tables hold and holds nothing of its own; it may be deleted at any time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd

from .. import plugins
from ..trajectory import Trajectory
from . import sinks


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
