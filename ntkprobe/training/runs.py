"""The folder of one training: its settings and report, where it stands, and its final model.

OUTPUT/training.yaml        every setting; `ntkprobe train … --config` replays it
OUTPUT/training.json        what was seen: data, parameters, seconds and memory of each stage
OUTPUT/data.parquet         the prompts trained on
OUTPUT/checkpoint-N/        transformers' own
OUTPUT/final/               there once the run has finished
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers import Trainer

from ..checkpoints import Checkpoint, find_checkpoints, readiness
from ..checkpoints.headers import read_json
from ..errors import UserError
from ..storage import replacing, write_json, write_table
from .callbacks import quiet
from .config import StageConfig

if TYPE_CHECKING:
    import pandas as pd

SETTINGS, REPORT, DATA, FINAL = "training.yaml", "training.json", "data.parquet", "final"


class Run:
    """One training in one folder, which belongs to one set of settings."""

    def __init__(self, config: StageConfig, inputs: dict[str, Any]) -> None:
        """Take the folder, or go on in it; UserError if it is another run's.

        Args:
            config: the settings; its `output_dir` is the folder.
            inputs: what the settings are applied to: the model's name, files, digests.
        """
        self.folder = Path(str(config.output_dir))
        self.config = config
        # Through YAML, so that what is compared is what is read back.
        self.settings = yaml.safe_load(yaml.safe_dump({**inputs, **config.settings()}))
        self.report: dict[str, Any] = {}
        self._claim()

    def _claim(self) -> None:
        """Compare the folder's settings with ours, or write ours.

        Raises:
            UserError: if the folder belongs to another run, or cannot be written.
        """
        path = self.folder / SETTINGS
        if path.is_file():
            _insist_on_equal(yaml.safe_load(path.read_text()), self.settings, self)
            if (self.folder / REPORT).is_file():
                self.report = read_json(self.folder / REPORT)
        elif self.folder.is_dir() and find_checkpoints(self.folder):
            raise UserError(
                f"{self.folder} holds checkpoints of something else: give another --output-dir"
            )
        elif self.writes:
            try:
                with replacing(path) as hidden:
                    hidden.write_text(yaml.safe_dump(self.settings, sort_keys=False))
            except OSError as error:
                raise UserError(f"cannot write to {self.folder}: {error.strerror}") from error

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return self.config.process_index == 0

    @property
    def final(self) -> Path:
        """Where the finished model is, or will be."""
        return self.folder / FINAL

    @property
    def finished(self) -> bool:
        """Whether it is there."""
        return self.final.is_dir()

    def last_checkpoint(self) -> Checkpoint | None:
        """Return the last whole checkpoint that training can go on from."""
        found = find_checkpoints(self.folder) if self.folder.is_dir() else []
        whole = [c for c in found if (c.path / "optimizer.pt").is_file() and _whole(c.path)]
        return whole[-1] if whole else None

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time a stage and add it to the report, with the peak of memory (paper, Table 2).

        Args:
            name: what it is called there.

        Yields:
            Nothing.
        """
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        row: dict[str, Any] = {"stage": name}
        try:
            yield
        finally:
            row["seconds"] = round(time.perf_counter() - begin, 3)
            row |= _peak_on_cuda() if cuda else _peak_of_process()
            self.report.setdefault("stages", []).append(row)

    def note(self, text: str) -> None:
        """Tell the user something, and keep it in the report."""
        self.report.setdefault("notes", []).append(text)
        if self.writes:
            print(text, file=sys.stderr)

    def write_data(self, table: "pd.DataFrame") -> None:
        """Keep the prompts trained on, for the next stage to compare its own with."""
        if self.writes:
            write_table(self.folder / DATA, table)

    def write_report(self, **facts: Any) -> None:
        """Add facts to the report and write it."""
        self.report |= facts
        if self.writes:
            write_json(self.folder / REPORT, self.report)

    def train(self, trainer: Trainer) -> None:
        """Train from the last whole checkpoint to the end, and report it.

        Args:
            trainer: made with this run's settings.
        """
        last = self.last_checkpoint()
        with quiet(), self.stage("train"):
            if last is None or last.step < _steps_of(last.path):
                trainer.train(resume_from_checkpoint=str(last.path) if last else None)
            else:  # stopped between the last step and the final model
                trainer._load_from_checkpoint(str(last.path))
        self.report["stages"][-1] |= {"from_step": last.step if last else 0}
        self.write_report(steps=trainer.state.global_step or (last.step if last else 0))

    def finish(self, save: Callable[[Path], None]) -> None:
        """Write the final model, whole or not at all.

        Args:
            save: writes a model and its tokenizer into the folder given.
        """
        if not self.writes:
            return
        hidden = self.folder / f".{FINAL}.tmp"
        shutil.rmtree(hidden, ignore_errors=True)
        with quiet():
            save(hidden)
        os.replace(hidden, self.final)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokenizer as an ordinary Hugging Face checkpoint."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _steps_of(checkpoint: Path) -> int:
    """Return how many steps the run that wrote this checkpoint was to take."""
    return int(read_json(checkpoint / "trainer_state.json")["max_steps"])


def _whole(folder: Path) -> bool:
    """Return whether a checkpoint's weights and marker are all there."""
    return readiness(folder).state == "ready"


def _insist_on_equal(recorded: dict[str, Any], asked: dict[str, Any], run: Run) -> None:
    """Refuse another setting of anything that changes the numbers.

    Args:
        recorded: the settings in the folder.
        asked: the settings of this call.
        run: whose folder it is.

    Raises:
        UserError: with both values of the first that differs.
    """
    for key in [*recorded, *asked]:
        old, new = recorded.get(key), asked.get(key)
        if old != new and key not in run.config.HARMLESS:
            raise UserError(
                f"{run.folder} was trained with {key}={old!r}, now asked for is {new!r}: "
                "give another --output-dir, or remove that folder"
            )


def _peak_on_cuda() -> dict[str, Any]:
    """Return the most memory tensors took on this GPU during the stage."""
    return {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3), "memory": "gpu"}


def _peak_of_process() -> dict[str, Any]:
    """Return the most memory the process took so far; the system keeps no peak of a stage."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_gib": round(peak / 2**20, 3), "memory": "process"}
