"""Named stages in figures: their names beside the numbers, and each stage as a run of one step."""

from collections.abc import Callable, Sequence
from functools import wraps

import pandas as pd

from ..stages import Record, with_stage
from ..trajectory import Trajectory

Numbers = Callable[[dict[str, Trajectory]], pd.DataFrame]


def with_stages(numbers: Numbers) -> Numbers:
    """Return `numbers` of a figure, with `stage` and `template` beside the steps of named models.

    Args:
        numbers: returns a table with `run` and `step`.

    Returns:
        The same; a table about no stages stays as it is.
    """

    @wraps(numbers)
    def named(runs: dict[str, Trajectory]) -> pd.DataFrame:
        return _named(numbers(runs), runs)

    return named


def stage_by_stage(numbers: Numbers) -> Numbers:
    """Return `numbers` of a figure about single steps, each stage a run with its own name.

    A figure of a run's first step is about the model that training began with; of named models,
    each is such a model.

    Args:
        numbers: returns a table with `run` and `step`.

    Returns:
        The same for the checkpoints of a run; with `stage` and `template` where there are stages.
    """

    @wraps(numbers)
    def named(runs: dict[str, Trajectory]) -> pd.DataFrame:
        apart = _apart(runs)
        return _named(numbers(apart), apart)

    return named


def _apart(runs: dict[str, Trajectory]) -> dict[str, Trajectory]:
    found: dict[str, Trajectory] = {}
    for name, run in runs.items():
        if not run.stage_names:
            found[name] = run
        for step, stage in run.stage_names.items():
            if step in run.steps:
                label = stage if len(runs) == 1 else f"{name}, {stage}"
                found[label] = Trajectory(run.folder, steps=[step])
    return found


def _named(table: pd.DataFrame, runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return a table with the stages and templates of its rows, where runs have some."""
    units = {name: run.step_unit for name, run in runs.items()}
    if set(units.values()) != {"step"}:
        table = table.assign(unit=table["run"].map(units))
    if not any(run.stage_names for run in runs.values()):
        return table
    parts = []
    for name, rows in table.groupby("run", sort=False):
        run = runs[str(name)]
        names = run.stage_names
        if names:
            rows = with_stage(rows, names)
            rows["stage"] = rows["stage"].astype("str")
            names_of = templates_of(run.stages)
            templates = [names_of[int(step)] for step in rows["step"]]
            rows.insert(list(rows.columns).index("stage") + 1, "template", templates)
        parts.append(rows)
    return pd.concat(parts).loc[table.index] if table.index.is_unique else pd.concat(parts)


def templates_of(stages: Sequence[Record]) -> list[str | None]:
    """Return the template of each stage, told apart where one name makes other tokens.

    Args:
        stages: as `Trajectory.stages`.

    Returns:
        Names; None where a stage was not read.
    """
    kinds: dict[str, list[str]] = {}
    for stage in filter(comparable, stages):
        if stage["tokens"] not in kinds.setdefault(stage["template"], []):
            kinds[stage["template"]].append(stage["tokens"])
    found: list[str | None] = []
    for stage in stages:
        name = stage.get("template")
        several = comparable(stage) and len(kinds[stage["template"]]) > 1
        found.append(f"{name} {kinds[str(name)].index(stage['tokens']) + 1}" if several else name)
    return found


def comparable(stage: Record) -> bool:
    """Return whether a stage's tokens mean what they mean at the other stages."""
    return bool(stage.get("same_vocabulary"))
