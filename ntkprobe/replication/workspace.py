"""The output folder of a replication with its settings, data and models, shared by all stages."""

import gc
import json
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoints import LoadSettings, gguf_identity
from ..errors import UserError, one_line
from ..prompts.phrases import phrase_set
from ..settings import require_same_settings
from ..storage import versions, write_json
from ..training.runs import located, model_digest
from .data_files import digests, hub_names
from .plan import STARTS, Stage
from .settings import ReplicationSettings, Scale
from .splits import Splits
from .subjects import subjects

PHRASES = "paper31"

SECONDS_BETWEEN = 10.0
"""Between two times that the seconds of a running stage are written down."""


@dataclass(frozen=True)
class Workspace:
    """The output folder and the settings.

    Attributes:
        settings: what the user chose.
        places: where the published files are.
    """

    settings: ReplicationSettings
    places: dict[str, Path]

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.settings.output_dir

    @property
    def scale(self) -> Scale:
        """The numbers of the scale."""
        return self.settings.numbers

    @property
    def splits(self) -> Splits:
        """The sets of prompts."""
        return Splits(self.out / "data")

    @property
    def load(self) -> LoadSettings:
        """How models are loaded to be measured and asked."""
        return LoadSettings(dtype=self.settings.dtype, device=self.settings.device)

    @cached_property
    def blocks(self) -> int:
        """How many decoder blocks the model has."""
        return shape_of(self.settings.model)["num_hidden_layers"]

    @property
    def layer(self) -> int:
        """The layer of DCR's loss."""
        return self.scale.layer(self.blocks)

    @property
    def pairs(self) -> int:
        """How many pairs STL draws: what the scale asks for, or what there is."""
        asked = {"general": self.scale.general, "refusals": self.scale.safe}
        return sum(self.splits.number(name, number) for name, number in asked.items())

    def run(self, stage_or_folder: Stage | str) -> Path:
        """Return the folder of a training run."""
        name = stage_or_folder if isinstance(stage_or_folder, str) else stage_or_folder.folder
        return self.out / "runs" / name

    def start_of(self, stage: Stage) -> str:
        """Return the model that a run's SFT starts from."""
        before = STARTS.get(stage.run)
        if before is None:
            return self.settings.model
        return str(self.run(Stage("train", before, stage.seed)) / "final")

    @cached_property
    def rate(self) -> float:
        """The learning rate of SFT.

        Raises:
            UserError: if it has not been chosen yet.
        """
        try:
            return float(json.loads((self.out / "choice.json").read_text())["rate"])
        except FileNotFoundError as error:
            raise UserError("the learning rate is not chosen yet: run --only choose") from error

    def adopt(self) -> None:
        """Write the settings; refuse a folder that holds another replication.

        Raises:
            UserError: naming what differs.
        """  # ruff: ignore[docstring-extraneous-exception]
        identity = model_digest(self.settings.model).get("model", f"hub:{self.settings.model}")
        compared: dict[str, Any] = {
            "scale": self.settings.scale,
            "numbers": json.loads(json.dumps(asdict(self.scale))),
            "model": identity,
            "dtype": self.settings.dtype,
            **{f"data.{name}": digest for name, digest in digests(self.places).items()},
            **{f"data.{name}": where for name, where in hub_names(self.places).items()},
        }
        path = self.out / "replication.json"
        old = json.loads(path.read_text()) if path.is_file() else {}
        require_same_settings(
            self.out,
            "replicated",
            old.get("compared", {}),
            compared,
            instead="give another --output-dir",
        )
        recorded = {
            "model": self.settings.model,
            "gguf": gguf_identity(self.settings.model) is not None,
            "seeds": sorted({*old.get("seeds", []), *self.settings.seeds}),
            "phrases": list(phrase_set(PHRASES)),
            "versions": versions(),
        }
        write_json(path, {"compared": compared, **recorded})

    def done(self, stage: Stage) -> bool:
        """Return whether a stage has been done."""
        return (self.out / "done" / f"{stage.file}.json").is_file()

    @contextmanager
    def timed(self, stage: Stage) -> Generator[None]:
        """Record that a stage is done, with its models, its seconds and its memory.

        The seconds are by the clock and of processors.

        One that fails is not recorded as done.

        Yields:
            Nothing.
        """
        unfinished = self.out / "done" / f".{stage.file}.json"
        about = {"stage": stage.name, "models": subjects(self.out, stage)}
        with _cost(unfinished) as cost:
            yield
        gc.collect()
        write_json(self.out / "done" / f"{stage.file}.json", {**about, **cost()})
        unfinished.unlink(missing_ok=True)

    @staticmethod
    def log(text: str) -> None:
        """Print a line on standard error."""
        print(one_line(text), file=sys.stderr, flush=True)


def shape_of(model: str) -> dict[str, int]:
    """Return a model's sizes, without loading its weights.

    Args:
        model: a folder, a GGUF file or a hub name.

    Returns:
        `num_hidden_layers`, `parameters`, `width` and `vocabulary`.
    """
    from math import prod

    from ..checkpoints.gguf_files import describe, gguf_file

    if (file := gguf_file(model)) is None:
        return _shape_of_config(model)
    about = describe(file)
    rows, width = about.shapes.get("token_embd.weight", (0, 0))
    return {
        "num_hidden_layers": int(about.settings.get(f"{about.architecture}.block_count", 0)),
        "parameters": sum(map(prod, about.shapes.values())),
        "width": width,
        "vocabulary": rows,
    }


def _shape_of_config(model: str) -> dict[str, int]:
    """Return the sizes of a model that has a configuration.

    Raises:
        UserError: if there is none.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ..checkpoints.hub_names import require_hub_name

    if not Path(located(model)).is_dir():
        require_hub_name(model)
    try:
        config = AutoConfig.from_pretrained(located(model), trust_remote_code=False)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"no model at {model!r}: {one_line(error)[:160]}") from error
    text = config.get_text_config()  # of a model that sees images, too, they are in a part of it
    return {
        "num_hidden_layers": int(text.num_hidden_layers),
        "parameters": sum(p.numel() for p in empty.parameters()),
        "width": int(text.hidden_size),
        "vocabulary": int(text.vocab_size),
    }


@contextmanager
def _cost(path: Path) -> Generator[Callable[[], dict[str, float | None]]]:
    """Count a stage's seconds and peak memory, what was before it was stopped included.

    The seconds are by the clock, which runs beside other programs and in pauses, and of processors.

    They are written to `path` now and then, so that they survive a process that is killed.

    Yields:
        What returns `seconds`, `processor_seconds` and `peak_gib` so far.
    """
    before = json.loads(path.read_text()) if path.is_file() else {}
    begin, used, ended = time.monotonic(), time.process_time(), threading.Event()
    spent = before.get("processor_seconds") if before else 0.0  # None: an attempt did not count it

    def cost() -> dict[str, float | None]:
        peaks = [peak for peak in (before.get("peak_gib"), _peak_gib()) if peak is not None]
        return {
            "seconds": round(before.get("seconds", 0.0) + time.monotonic() - begin, 1),
            "processor_seconds": None
            if spent is None
            else round(spent + time.process_time() - used, 1),
            "peak_gib": max(peaks, default=None),
        }

    def write() -> None:
        while not ended.wait(SECONDS_BETWEEN):
            with suppress(OSError):  # a full disk is for the stage itself to report
                write_json(path, cost())

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield cost
    finally:
        ended.set()
        writer.join()
        write_json(path, cost())


def _peak_gib() -> float | None:
    """Return the most memory that the process has had, in GiB."""
    import resource

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kib / 2**20, 2) if sys.platform.startswith("linux") else None
