"""What trainers log beside their checkpoints: learning rates by step, and how many were trained on.

Only JSON and text are read. `training_args.bin`, which holds every setting of transformers' Trainer
and of those built on it, is a pickle, which can run code: it is left alone.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .folders import counts_epochs
from .headers import Incomplete, read_json, regular_file

LOG_LIMIT = 64 << 20  # bytes of a log
_STEP_LINE = re.compile(r"Step (\d{1,18}) \| ")
_RATE = re.compile(r"\blr:(\S+)")


@dataclass(frozen=True)
class TrainingLog:
    """What a run recorded about its training.

    Attributes:
        rates: the learning rate by step, at the steps that were logged; empty if it is not known.
        source: the file that `rates` is from, by name; empty without one.
        pairs: how many rows it was trained on; None where it does not say.
    """

    rates: dict[int, float] = field(default_factory=dict)
    source: str = ""
    pairs: int | None = None


def read_training_log(run: Path, last: Path | None = None) -> TrainingLog:
    """Return what a trainer logged: the first of these files that tells learning rates.

    `trainer_state.json` of the last checkpoint or of the run (transformers' Trainer, TRL, axolotl,
    LLaMA-Factory, Unsloth), `trainer_log.jsonl` (LLaMA-Factory), `log_*.txt` (torchtune).

    Args:
        run: the run's folder.
        last: its last checkpoint.

    Returns:
        The record. Where the checkpoints' names tell epochs only there are no rates: they are
        logged by step, and nothing says how many steps an epoch has.
    """
    states = [folder / "trainer_state.json" for folder in (last, run) if folder is not None]
    texts = sorted([*run.glob("log_*.txt"), *run.glob("logs/log_*.txt")]) if run.is_dir() else []
    found = [(file, _of_state(file)) for file in states]
    found.append((run / "trainer_log.jsonl", _of_lines(run / "trainer_log.jsonl")))
    found += [(file, _of_text(file)) for file in texts]
    logged = next(((file.name, rates) for file, rates in found if rates), ("", {}))
    source, rates = ("", {}) if counts_epochs(run) else logged
    return TrainingLog(rates, source, _pairs(run))


def _of_state(file: Path) -> dict[int, float]:
    """Return the rates in the `log_history` of a `trainer_state.json`."""
    history = _json(file).get("log_history")
    rows = history if isinstance(history, list) else []
    return _rates((row.get("step"), row.get("learning_rate")) for row in _objects(rows))


def _of_lines(file: Path) -> dict[int, float]:
    """Return the rates in LLaMA-Factory's log, a JSON object a line; `lr`, of old `learning_rate`.

    A run that was started again goes on in the same file, so that the last line of a step counts.
    """
    rows = _objects(map(_parsed, _text(file).splitlines()))
    return _rates(
        (row.get("current_steps"), row.get("lr", row.get("learning_rate"))) for row in rows
    )


def _of_text(file: Path) -> dict[int, float]:
    """Return the rates in torchtune's log: lines such as `Step 3 | loss:1.5 lr:2e-05 …`."""
    found = []
    for line in _text(file).splitlines():
        step, rate = _STEP_LINE.match(line), _RATE.search(line)
        if step and rate:
            found.append((int(step[1]), _parsed(rate[1])))
    return _rates(found)


def _rates(pairs: Iterable[tuple[Any, Any]]) -> dict[int, float]:
    """Return what can be a learning rate at a step; a file is anybody's."""
    return {
        step: float(rate)
        for step, rate in pairs
        if type(step) is int and type(rate) in (int, float) and rate >= 0 and math.isfinite(rate)
    }


def _pairs(run: Path) -> int | None:
    """Return `train_samples` of the results that transformers' example scripts and others write."""
    for name in ("train_results.json", "all_results.json"):
        count = _json(run / name).get("train_samples")
        if type(count) is int and count > 0:
            return count
    return None


def _objects(values: Iterable[Any]) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)]


def _json(file: Path) -> dict[str, Any]:
    try:
        return read_json(file, LOG_LIMIT)
    except (Incomplete, UserError, OSError):
        return {}


def _text(file: Path) -> str:
    try:
        if regular_file(file).st_size > LOG_LIMIT:
            return ""
        return file.read_text("utf-8", errors="replace")
    except (Incomplete, UserError, OSError):
        return ""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
