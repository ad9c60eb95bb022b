"""Table 2: time and memory of each stage of training, as measured while it trained."""

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ..errors import UserError
from ..places import split_place
from .columns import Judges
from .paper_reference import paper_table, paper_value
from .rendering import Table

MISSING = "give folders of `ntkprobe train`, which hold training.json"
BY_MODEL = True
PRINTED = (
    "paper: as printed by Lu et al. (2026), table 2: its 1 minute of DCR is an upper limit, its "
    "gigabytes are rounded, and its machine is not ours."
)
Run = dict[str, Any]


def find(places: Iterable[str | PathLike[str]]) -> dict[str, Run]:
    """Return what training runs recorded, by their names.

    Args:
        places: folders of `ntkprobe train`, folders that hold some, or `NAME=FOLDER`.

    Returns:
        The `stages` of `training.json`, with the `kind` of training and the `model` it began with.

    Raises:
        UserError: if a place holds none, or two runs have the same name.
    """
    runs: dict[str, Run] = {}
    folders: dict[str, Path] = {}
    for place in map(str, places):
        name, root = split_place(place)
        inside = sorted(p.parent for p in root.glob("*/training.json"))
        found = [root] if (root / "training.json").is_file() else inside
        if not found or (name is not None and len(found) > 1):
            raise UserError(f"no training run in {root}: {MISSING}")
        for run in found:
            row = name or run.resolve().name
            if row in runs:
                raise UserError(
                    f"two runs are called {row!r}, {folders[row]} and {run}: give one as "
                    "NAME=FOLDER"
                )
            runs[row], folders[row] = _read(run), run
    return runs


def table(runs: dict[str, Run], judges: Judges) -> Table:
    """Return a row for each run: minutes of training and in all, and the peak of memory."""
    rows = []
    for name, run in runs.items():
        stages = run["stages"]
        seconds = [stage["seconds"] for stage in stages]
        training = [stage["seconds"] for stage in stages if stage["stage"] == "train"]
        peak = max(stage["peak_gib"] for stage in stages)
        for column, key, value, digits in (
            ("training, min", "minutes", sum(training) / 60, 2),
            ("in all, min", "", sum(seconds) / 60, 2),
            ("peak memory, GiB", "memory_gb", peak, 2),
        ):
            cell = {"row": name, "column": column, "key": (run["kind"], key)}
            rows.append(cell | {"value": value, "digits": digits})
    names = ["row", "column", "key", "value", "low", "high", "count", "of", "digits"]
    memory = sorted({stage["memory"] for run in runs.values() for stage in run["stages"]})
    note = (
        "Wall time of the stages that were run, those of interrupted runs included; memory "
        f"allocated at most: {', '.join(memory)} (gpu: tensors; process: resident)."
    )
    return Table(
        "Time and memory of training", "run", pd.DataFrame(rows, columns=names), notes=(note,)
    )


def paper(cell: dict[str, Any], model: str) -> float | None:
    """Return the paper's number for a cell; None if it prints none."""
    stage, key = cell["key"]
    theirs = {"dcr": "dcr", "sft": "alignment"}.get(stage)
    return paper_value(paper_table("table2"), {"model": model, "stage": theirs}, key)


def _read(run: Path) -> Run:
    """Return what one run recorded.

    Raises:
        UserError: if it cannot be read, or recorded no stage.
    """
    try:
        report = json.loads((run / "training.json").read_text())
        settings = yaml.safe_load((run / "training.yaml").read_text()) or {}
        stages = [s for s in report["stages"] if {"stage", "seconds", "peak_gib"} <= set(s)]
        about = {"kind": settings.get("stage"), "model": settings.get("model")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{run} is no readable training run ({error}): {MISSING}") from error
    if not stages:
        raise UserError(f"{run} has recorded no finished stage yet: let the training go on")
    return {"stages": [{"memory": "process", **s} for s in stages], **about}
