"""What a finished run was trained on, token by token, and with which learning rates."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints import Checkpoint, identity, pinned, readiness
from ..checkpoints.headers import read_json
from ..checkpoints.training_logs import TrainingLog, read_training_log
from ..errors import UserError
from ..measurement.influence.examples import recorded_data
from ..prompts.files import read_rows
from ..prompts.prompt_set import normalised, require_groups
from ..prompts.rendering import dated
from ..prompts.templates import Template, resolve_template
from ..storage import training_settings
from ..training.data import IGNORED, Pair, digest, read_pairs
from ..training.runs import REPORT, SETTINGS
from ..training.sft import SFTConfig, encode_pair
from ..watcher.models import Models
from ..watcher.scan import CheckpointScanner, ScannedCheckpoint

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_OURS = {one.name for one in fields(SFTConfig) if one.init}


@dataclass(frozen=True)
class TrainedPair:
    """A pair as it was trained on.

    Attributes:
        number: its row in the data.
        source: such as `general` or `safe`; empty where the data do not say.
        pair: its texts.
        input_ids: its tokens.
        labels: the token to predict at every place, `IGNORED` where none is learnt.
    """

    number: int
    source: str
    pair: Pair
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def learnt(self) -> int:
        """How many of its tokens the loss counts."""
        return sum(label != IGNORED for label in self.labels[1:])


class TrainingRun:
    """The folder of a run, as far as attribution needs it.

    Args:
        folder: the run, as `ntkprobe train sft` left it, or checkpoints of another trainer's.
        pairs: a file of the pairs it was trained on; None for the run's own `data.parquet`.

    Raises:
        UserError: if the data are missing, or the checkpoints.
    """

    def __init__(self, folder: Path, pairs: str | Path | None = None) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: give a training run with its checkpoints")
        found = pairs or recorded_data(folder)
        if found is None:
            raise UserError(
                f"{folder} has no data.parquet, in which ntkprobe train sft leaves the pairs: name "
                "the file of pairs that it was trained on with --pairs FILE (columns prompt and "
                "response)"
            )
        self.data = found
        self.left_out: tuple[int, ...] = ()  # steps of checkpoints that are not whole
        own = recorded_data(folder)
        place = own.parent if own is not None else folder
        self.report = read_json(place / REPORT) if (place / REPORT).is_file() else {}
        self._recorded = place

    @cached_property
    def config(self) -> SFTConfig:
        """The settings that it was trained with; the defaults where it does not say.

        Raises:
            UserError: if it was no training on answers.
        """
        given = training_settings(self._recorded)
        stage = given.get("stage", "sft")
        if stage != "sft":
            raise UserError(
                f"{self.folder} is a run of the stage {stage!r}, which learns no answers: give one "
                "of ntkprobe train sft"
            )
        kept = {name: value for name, value in given.items() if name in _OURS}
        # Nothing is trained here: what the machine of the run could do is not asked of this one.
        here = {"output_dir": str(self.folder), "use_cpu": True, "tf32": None}
        return SFTConfig(**{**kept, **here})

    @cached_property
    def texts(self) -> list[tuple[str, Pair]]:
        """Source and texts of every pair, in the order of the data.

        Raises:
            UserError: if they are others than those trained on.
        """
        if Path(self.data).suffix == ".parquet" and Path(self.data).name == "data.parquet":
            rows = read_rows(Path(self.data))
            found = [(str(r.get("source") or ""), _pair(r)) for r in rows]
        else:
            require_groups(self.data)
            found = [("", pair) for pair in read_pairs(self.data)]
        recorded = self.report.get("data", {}).get("digest")
        if recorded is not None and digest([pair for _, pair in found]) != recorded:
            raise UserError(
                f"{self.data} holds other pairs than {self.folder} was trained on (the digest in "
                f"{REPORT} differs): give the file as it was then"
            )
        return found

    def template(self, tokenizer: "PreTrainedTokenizerBase") -> Template:
        """Return the template that it was trained with, on the day that it printed then."""
        with dated(self.report.get("data", {}).get("template_date")):
            return resolve_template(tokenizer, self.config.template)

    def encoded(self, tokenizer: "PreTrainedTokenizerBase") -> list[TrainedPair]:
        """Return the pairs that were trained on, as tokens; those without room are left out.

        Returns:
            The pairs in order; they have as many tokens as the run counted.
        """
        found = self.encode(self.texts, tokenizer)
        self._require_counts(found)
        return found

    def encode(
        self, texts: Sequence[tuple[str, Pair]], tokenizer: "PreTrainedTokenizerBase"
    ) -> list[TrainedPair]:
        """Return pairs, with their sources, as this run trains on them; without room, left out."""
        template = self.template(tokenizer)
        found = []
        for number, (source, pair) in enumerate(texts):
            row = None if pair.empty else encode_pair(pair, tokenizer, template, self.config)[0]
            if row is not None:
                ids, labels = tuple(row["input_ids"]), tuple(row["labels"])
                found.append(TrainedPair(number, source, pair, ids, labels))
        return found

    def _require_counts(self, found: Sequence[TrainedPair]) -> None:
        """Compare pairs and tokens with what the run counted.

        Raises:
            UserError: if they differ, or there are none.
        """
        if not found:
            raise UserError(f"{self.data} holds no pair that can be trained on")
        data = self.report.get("data", {})
        tokens = data.get("tokens", {})
        counts = {
            "pairs": (len(found), data.get("trained_on")),
            "tokens": (sum(len(p.input_ids) for p in found), tokens.get("total")),
            "tokens with a loss": (
                sum(label != IGNORED for p in found for label in p.labels),
                tokens.get("with_loss"),
            ),
        }
        for what, (now, then) in counts.items():
            if then is not None and now != then:
                raise UserError(
                    f"{self.data} gives {now} {what}, {self.folder} was trained on {then}: the "
                    "pairs, the tokenizer or the template changed since; give the file as it was"
                )

    def trained_on(self, texts: Sequence[str]) -> list[int]:
        """Return the places of those prompts that are prompts of the training data."""
        known = {normalised(pair.prompt) for _, pair in self.texts}
        return [place for place, text in enumerate(texts) if normalised(text) in known]

    def checkpoints(self) -> list[ScannedCheckpoint]:
        """Return the whole checkpoints by step; the final model alone where there is no other.

        Raises:
            UserError: if there is none.
        """
        seen = CheckpointScanner(self.folder).look()
        ready = [each_scanned for each_scanned in seen if each_scanned.is_ready]
        if ready:
            self.left_out = tuple(s.checkpoint.step for s in seen if not s.is_ready)
            return ready
        final = Checkpoint(int(self.report.get("steps", 0)), self.folder / "final")
        verdict = readiness(final.path) if final.path.is_dir() else None
        if verdict is None or not verdict.weights:
            raise UserError(
                f"no whole checkpoints in {self.folder}: expected checkpoint-N or final"
            )
        return [ScannedCheckpoint(final, verdict)]

    def learning_rates(self) -> tuple[float, ...]:
        """Return the learning rate of every step that `ntkprobe train` recorded; else nothing.

        The schedule is that of the steps planned: a callback may have stopped the run before.
        """
        steps = int(self.report.get("steps") or 0)
        if not steps or not (self._recorded / SETTINGS).is_file():
            return ()
        from transformers import get_scheduler

        config, planned = self.config, max(steps, self._planned_steps())
        special: Any = config.lr_scheduler_kwargs or {}
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
        schedule = get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            config.get_warmup_steps(planned),
            planned,
            scheduler_specific_kwargs=special,
        )
        rates = []
        for _ in range(steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            schedule.step()
        return tuple(rates)

    def _planned_steps(self) -> int:
        """Return how many steps the run was to take; 0 where neither report nor checkpoint says."""
        if "planned_steps" in self.report:
            return int(self.report["planned_steps"])
        state = self.checkpoints()[-1].checkpoint.path / "trainer_state.json"
        return int(read_json(state).get("max_steps") or 0) if state.is_file() else 0

    def log(self, last: Checkpoint) -> TrainingLog:
        """Return what another trainer logged; without learning rates where it does not say them."""
        return read_training_log(self.folder, last.path)


@dataclass
class OpenedRun:
    """A run whose models are loaded one after the other.

    Attributes:
        models: loads them.
        pins: where checkpoints are held while they are read.
    """

    models: Models
    pins: Path

    @contextmanager
    def opened(self, each_scanned: ScannedCheckpoint) -> Generator[tuple["nn.Module", str]]:
        """Load a checkpoint.

        Args:
            each_scanned: one that is whole.

        Yields:
            The model, its adapter not merged, and the checkpoint's identity.
        """
        with ExitStack() as stack:
            with pinned(each_scanned.checkpoint, each_scanned.verdict, self.pins) as pin:
                which = identity(pin, each_scanned.verdict.weights)
                if each_scanned.verdict.kind == "adapter":
                    self.models.learn_base(each_scanned.checkpoint.path)
                model = stack.enter_context(self.models.opened(pin, each_scanned.verdict.kind))
            yield model, which

    def identity(self, each_scanned: ScannedCheckpoint) -> str:
        """Return which weights a checkpoint has, without loading them."""
        return identity(each_scanned.checkpoint.path, each_scanned.verdict.weights)


@contextmanager
def opening(models: Models, folder: Path | None) -> Generator[OpenedRun]:
    """Hold a place for pins, in `folder` or in a temporary one, while models are loaded.

    Yields:
        What loads the models.
    """
    with ExitStack() as stack:
        place = folder / ".pins" if folder else Path(stack.enter_context(TemporaryDirectory()))
        yield OpenedRun(models, place)


def _pair(row: dict[str, Any]) -> Pair:
    """Return one row of `data.parquet`."""
    texts = (str(row.get(name) or "") for name in ("prompt", "response", "prefill"))
    return Pair(*texts)
