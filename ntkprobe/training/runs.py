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
from collections.abc import Generator
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError
from transformers import Trainer

from ..checkpoints import (
    Checkpoint,
    find_checkpoints,
    gguf_file,
    gguf_identity,
    named_identity,
    readiness,
)
from ..checkpoints.accounting import require_finite_weights
from ..checkpoints.folders import NAME as CHECKPOINT
from ..checkpoints.headers import read_json
from ..checkpoints.tokenizer_files import tokenizer_digest
from ..errors import UserError, one_line
from ..models.memory import as_out_of_memory
from ..settings import require_same_settings
from ..storage import read_record, replacing, training_settings, write_json, write_table
from .callbacks import quiet, settings_in_one_line
from .config import StageConfig

if TYPE_CHECKING:
    import pandas as pd

SETTINGS, REPORT, DATA, FINAL = "training.yaml", "training.json", "data.parquet", "final"

CONFIGURATIONS = ("config.json", "adapter_config.json")
"""What a folder has in which a model or adapter was saved."""

WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "iostream error")
"""What torch.save says, as a RuntimeError, when a disk is full."""


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
        # Another number of processes is another batch; through YAML, to compare what is read back.
        given = {**inputs, "processes": config.world_size, **config.settings()}
        self.settings = yaml.safe_load(yaml.safe_dump(given))
        self.report: dict[str, Any] = {}
        self._anew = config.overwrite  # what the folder holds is kept until training can begin
        self._look()

    def _look(self) -> None:
        """Compare the settings of what the folder holds with ours.

        Raises:
            UserError: if the folder belongs to another run, or cannot be written.
        """
        path = self.folder / SETTINGS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}") from error
        begun = self.final.is_dir() or any(self.folder.glob("checkpoint-*"))
        a_model = any((self.folder / name).is_file() for name in CONFIGURATIONS)
        if (begun or a_model) and not path.is_file():
            held = "checkpoints of something else" if begun else "a model"
            raise UserError(f"{self.folder} holds {held}: give another --output-dir")
        if self._anew:
            self._require_model_kept()
        elif begun:
            _require_same(training_settings(self.folder), self.settings, self)
            self.report = read_record(self.folder / REPORT, "give --overwrite to begin anew")

    def _require_model_kept(self) -> None:
        """Refuse to overwrite what is to be trained.

        Raises:
            UserError: if the model is among what would be removed.
        """
        model = Path(located(str(self.settings["model"]))).resolve()
        if any(model.is_relative_to(path.resolve()) for path in _models_of_run(self.folder)):
            raise UserError(
                f"--overwrite would remove {model}, which is to be trained: give another "
                "--output-dir"
            )

    def begin(self, trained_on: "pd.DataFrame", **facts: Any) -> None:
        """Take the folder: write the settings, the data and the report so far.

        Args:
            trained_on: the prompts, in a column `prompt`, for the next stage to compare with.
            **facts: for the report.
        """
        with self.config.main_process_first(local=False):
            if self._anew and self.writes:
                _clear(self.folder)
        self._anew = False
        if self.writes:
            with replacing(self.folder / SETTINGS) as hidden:
                hidden.write_text(yaml.safe_dump(self.settings, sort_keys=False), "utf-8")
            write_table(self.folder / DATA, trained_on)
        self.write_report(**facts)

    @property
    def template_date(self) -> str | None:
        """The day that the template printed when the run began; None if it is new, or prints none.

        The data of a run that goes on another day have the same tokens.
        """
        return self.report.get("data", {}).get("template_date")

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
        """Whether it is there, and counts."""
        return not self._anew and self.final.is_dir()

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
        _forget_peak()
        begin = time.perf_counter()
        row: dict[str, Any] = {"stage": name}
        try:
            yield
        finally:
            row["seconds"] = round(time.perf_counter() - begin, 3)
            row |= _peak()
            self.report.setdefault("stages", []).append(row)

    def tell(self, text: str) -> None:
        """Tell the user something, once for all processes."""
        if self.writes:
            print(one_line(text), file=sys.stderr)

    def note(self, text: str) -> None:
        """Tell the user something, and keep it in the report."""
        if text not in self.report.setdefault("notes", []):
            self.report["notes"].append(text)
        self.tell(text)

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
        first = last.step if last else 0
        refused = settings_in_one_line(lambda: trainer.state.global_step > first)
        with quiet(), translating_errors(), refused, self.stage("train"):
            if last is None or last.step < _steps_of(last.path):
                trainer.train(resume_from_checkpoint=str(last.path) if last else None)
            else:  # stopped between the last step and the final model
                trainer._load_from_checkpoint(str(last.path))
        self.report["stages"][-1] |= {"from_step": first}
        planned = trainer.state.max_steps or (_steps_of(last.path) if last else 0)
        self.write_report(steps=trainer.state.global_step or first, planned_steps=planned)

    def finish(self, model: Any, tokenizer: Any) -> None:
        """Write the final model and its tokenizer as an ordinary checkpoint, whole or not at all.

        Args:
            model: a model or adapter in training's last state.
            tokenizer: its tokenizer.
        """
        require_finite_weights(model, "the trained model")
        if not self.writes:
            return
        hidden = self.folder / f".{FINAL}.tmp"
        shutil.rmtree(hidden, ignore_errors=True)
        model.config.use_cache = True  # the Trainer switched it off
        with quiet(), translating_errors():
            model.save_pretrained(hidden)
            tokenizer.save_pretrained(hidden)
        os.replace(hidden, self.final)


def _clear(folder: Path) -> None:
    """Remove what an earlier run wrote, and nothing else; last what tells that it was one of ours.

    Stopped in between, the same command therefore goes on with it.
    """
    if not (folder / SETTINGS).is_file():
        return
    for path in _models_of_run(folder):
        shutil.rmtree(path, ignore_errors=True)
    for name in (DATA, REPORT, SETTINGS):
        (folder / name).unlink(missing_ok=True)


def _models_of_run(folder: Path) -> list[Path]:
    """Return where a run has its models: the final one, and its checkpoints."""
    numbered = folder.glob("checkpoint-*")
    return [folder / FINAL, *(path for path in numbered if CHECKPOINT.fullmatch(path.name))]


@contextmanager
def translating_errors() -> Generator[None]:
    """Say in one line what libraries say in many: no memory, or no room on the disk.

    Yields:
        Nothing.

    Raises:
        UserError: when memory is too small for the settings, a GPU's or the machine's.
        OSError: when a checkpoint cannot be written.
        RuntimeError: any other, unchanged.
    """
    try:
        with as_out_of_memory():
            yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "out of memory: use a smaller --batch-size, --gradient-checkpointing, or LoRA"
        ) from error
    except SafetensorError as error:
        raise OSError(f"cannot write a checkpoint: {error}") from error
    except RuntimeError as error:
        if any(words in str(error) for words in WRITE_FAILURES):
            raise OSError(f"cannot write a checkpoint: {error}") from error
        raise


def _steps_of(checkpoint: Path) -> int:
    """Return how many steps the run that wrote this checkpoint was to take."""
    return int(read_json(checkpoint / "trainer_state.json")["max_steps"])


def _whole(folder: Path) -> bool:
    """Return whether a checkpoint's weights and marker are all there."""
    return readiness(folder).state == "ready"


def located(model: str) -> str:
    """Return where a model is: its full path, which an adapter will name, or a hub name.

    Args:
        model: a folder, a GGUF file, a hub name, or `package:NAME/FOLDER` for one that is in an
            installed package.

    Returns:
        What to load it by.
    """
    if model.startswith("package:"):
        package, _, folder = model.removeprefix("package:").partition("/")
        return str(files(package) / folder)
    place = Path(model)
    return str(place.resolve()) if place.is_dir() or gguf_file(place) is not None else model


def model_digest(model: str) -> dict[str, str]:
    """Return a model's identity under `model`, if it is a folder or a GGUF file."""
    found = named_identity(located(model))
    return {} if found is None else {"model": found}


TEXTS = ("template_text", "tokenizer")
"""Digests that folders of earlier versions do not have, where they say nothing."""


def text_digests(model: str, template: str) -> dict[str, str]:
    """Return digests of what makes tokens of texts: `tokenizer`, and `template_text` of a file.

    Args:
        model: what is trained; of a hub name or a GGUF file there is no digest of its tokenizer.
        template: of the settings.
    """
    found = {}
    if Path(template).is_file():
        found["template_text"] = sha256(Path(template).read_bytes()).hexdigest()
    folder = Path(located(model))
    if folder.is_dir() and gguf_identity(folder) is None:
        found["tokenizer"] = tokenizer_digest(folder)
    return found


def _require_same(recorded: dict[str, Any], asked: dict[str, Any], run: Run) -> None:
    """Refuse another setting of anything that changes the numbers.

    Files and models are compared by their digests, since the same may be at another path.

    Args:
        recorded: the settings in the folder.
        asked: the settings of this call.
        run: whose folder it is.

    Raises:
        UserError: with both values of the first that differs.
    """  # ruff: ignore[docstring-extraneous-exception]
    defaults = run.config.defaults()  # of a setting that was not there when the folder was written
    ignored = {"digests", *run.config.HARMLESS}
    before, now = (
        {
            name: value
            for name, value in {**defaults, **record, **record.get("digests", {})}.items()
            if name not in ignored
        }
        for record in (recorded, asked)
    )
    for name in TEXTS:
        if name not in recorded.get("digests", {}):
            now.pop(name, None)
    by_content = set(asked["digests"]) & set(recorded.get("digests", {}))
    require_same_settings(
        run.folder,
        "trained",
        before,
        now,
        both=True,
        names=lambda name: f"the content of {name}" if name in by_content else name,
    )


def _peak() -> dict[str, Any]:
    """Return the most memory since `_forget_peak`, of tensors on the GPU or else of the process."""
    if torch.cuda.is_available():
        return {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3), "memory": "gpu"}
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux: only time is reported
        return {}
    return {"peak_gib": round(kib / 2**20, 3), "memory": "process"}


def _forget_peak() -> None:
    """Begin to look for the most memory anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
