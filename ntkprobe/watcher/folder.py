"""The folder of one run's measurements: who writes what, and in which order.

Every table is a file of its own, whole from the moment it is there, and carries the identity of the
checkpoint it was measured on. Companion tables (tokens, parts, blocks, terms) are written
first: a file of the kernel or of influence implies that its companions are there.
"""

import json
import os
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..checkpoints import remove_stale_pins
from ..directions.measurement import DirectionMeasurement
from ..errors import UserError
from ..measurement import (
    ActivationMeasurement,
    Encoded,
    KernelMeasurement,
    RefusalMeasurement,
)
from ..measurement.influence import Influence
from ..prompts.prompt_set import PromptSet
from ..settings import same_identity
from ..storage import (
    SCHEMA_VERSION,
    replacing,
    versions,
    write_json,
    write_table,
    write_tensors,
)
from .settings import COMPARED, MeasureSettings, require_same
from .stored_tables import (
    COMPANIONS,
    IDENTITY,
    MEASURED,
    ONCE,
    STEP,
    TABLES,
    StoredTables,
    require_measurements,
    table_metadata,
)

UNFINISHED = "unfinished"
"""The folder of kernels that were stopped."""
ABANDONED = 3600.0  # seconds; no table takes so long to write


class MeasurementFolder(StoredTables):
    """The folder of one run's measurements: its tables, settings, events and pins.

    Args:
        path: where it is, or will be.
        overwrite: forget what was measured there before.

    Raises:
        UserError: if it cannot be written to, or holds what another command wrote.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        super().__init__(path)
        self.pins = path / ".pins"
        require_measurements(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with replacing(path / ".writable") as probe:
                probe.touch()
            now = (path / ".writable").stat().st_mtime  # by the file system's own clock
            (path / ".writable").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror or error}") from error
        if overwrite:
            self._forget()
        remove_stale_pins(self.pins)
        self._tidy(now)

    def close(self) -> None:
        """Leave no empty folders behind."""
        pins = self.pins / f"{socket.gethostname()}-{os.getpid()}", self.pins
        for folder in (*pins, self.path / UNFINISHED):
            with suppress(OSError):
                folder.rmdir()

    def _tidy(self, now: float) -> None:
        """Remove what killed processes left half written, an hour ago or more."""
        for hidden in [*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")]:
            with suppress(OSError):
                if now - hidden.stat().st_mtime > ABANDONED:
                    hidden.unlink()

    def _forget(self) -> None:
        """Remove what we wrote, and nothing else."""
        for name in (*TABLES, "tensorboard", "unverified", UNFINISHED):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("run.json", *ONCE):
            (self.path / name).unlink(missing_ok=True)
        for events in self.path.glob("events-*.jsonl"):
            events.unlink(missing_ok=True)

    def adopt(self, record: dict[str, Any], about: dict[str, Any]) -> None:
        """Write the settings to `run.json`, or insist that they agree with what it says.

        Args:
            record: what is compared (`MeasureSettings.record`).
            about: what is recorded and not compared, such as the command line.
        """
        old = self.settled
        require_same(self.path, old, record)
        merged = {**old, **{key: value for key, value in record.items() if value is not None}}
        if not record["model"]["base_identity"]:
            merged["model"] = old.get("model", record["model"])
        if not old:
            merged = {"schema_version": SCHEMA_VERSION, "versions": versions(), **about, **merged}
            self._forget_unless(merged)
        if merged != old:
            write_json(self.path / "run.json", merged)

    def _forget_unless(self, settings: dict[str, Any]) -> None:
        """Remove what calls with other settings left that measured no step."""
        names = (*COMPARED, "stages")
        left, record = self.record, json.loads(json.dumps(settings))
        if any(left.get(name) != record.get(name) for name in names):
            companions = [name for names in COMPANIONS.values() for name in names]
            for name in (*companions, UNFINISHED):
                shutil.rmtree(self.path / name, ignore_errors=True)
            for name in ONCE:
                (self.path / name).unlink(missing_ok=True)

    def unfinished_kernel(self, step: int) -> Path:
        """Return the file of the state of a step's kernel, should its measurement be stopped."""
        return self.path / UNFINISHED / f"kernel-step-{step:08d}.safetensors"

    def write_prompts(self, encoded: Encoded, in_kernel: set[int]) -> None:
        """Write `prompts.parquet`, if it is not there, or names no prompt of the kernel yet."""
        path = self.path / "prompts.parquet"
        if path.is_file() and (not in_kernel or pd.read_parquet(path)["in_kernel"].any()):
            return
        table = encoded.prompts.frame()
        table["n_tokens"] = [len(row) for row in encoded.input_ids]
        table["in_kernel"] = [row in in_kernel for row in range(len(table))]
        write_table(self.path / "prompts.parquet", table)

    def write_updated(self, updated: PromptSet) -> None:
        """Write `updated.parquet`, the pairs whose influence is measured, if it is not there."""
        if not (self.path / "updated.parquet").is_file():
            table = updated.frame().rename(columns={"prompt": "updated"})
            write_table(self.path / "updated.parquet", table)

    def write_kernel(
        self,
        step: int,
        identity: str,
        measured: KernelMeasurement,
        rows: list[int],
        texts: pd.DataFrame | None,
    ) -> None:
        """Write the kernel of one checkpoint, its companions first.

        Args:
            step: the checkpoint's.
            identity: the checkpoint's.
            measured: the numbers.
            rows: the row in `prompts.parquet` of each prompt measured.
            texts: the block's tokens: `prompt, rank, token, text`; None if all logits were read.
        """
        of_row = pd.Series(rows)
        if texts is not None:
            self._write("tokens", step, identity, texts.assign(prompt=texts["prompt"].map(of_row)))
        if measured.parts is not None:
            self._write("parts", step, identity, _renumbered(measured.parts, of_row))
        if measured.blocks is not None:
            tensors = {"blocks": measured.blocks.contiguous()}
            write_tensors(self.file("blocks", step), tensors, _stamp(identity))
        pairs = measured.frame().filter(["observed", "updated", "norm", "norm_error"])
        self._write("kernel", step, identity, _renumbered(pairs, of_row))

    def write_refusal(self, step: int, identity: str, measured: RefusalMeasurement) -> None:
        """Write the refusals of one checkpoint."""
        columns = ["prompt", "phrase_set", "reduction", "log_probability", "upper"]
        verdicts = ["refuses", "incoherent"]
        self._write("refusal", step, identity, measured.frame()[[*columns, *verdicts]])

    def write_activations(self, step: int, identity: str, measured: ActivationMeasurement) -> None:
        """Write the activations of one checkpoint, `[prompts, hidden]` for each layer."""
        tensors = {f"layer_{number}": values for number, values in measured.layers.items()}
        write_tensors(self.file("activations", step), tensors, _stamp(identity))

    def write_directions(self, step: int, identity: str, measured: DirectionMeasurement) -> None:
        """Write activations at named positions, and which prompts were refused (-1: unknown)."""
        tensors = {
            f"{position}.layer_{layer}": torch.from_numpy(values).contiguous()
            for (position, layer), values in measured.activations.items()
        }
        verdicts = [-1 if refused is None else int(refused) for refused in measured.refuses]
        tensors["refuses"] = torch.tensor(verdicts, dtype=torch.int8)
        write_tensors(self.file("directions", step), tensors, _stamp(identity))

    def write_influence(
        self, step: int, identity: str, measured: Influence, rows: list[int]
    ) -> None:
        """Write the influence of the updated pairs at one checkpoint, its terms first.

        Args:
            step: the checkpoint's.
            identity: the checkpoint's.
            measured: the numbers.
            rows: the row in `prompts.parquet` of each prompt observed.
        """
        of_row = pd.Series(rows)
        terms = measured.terms()
        self._write(
            "terms",
            step,
            identity,
            terms.assign(observed=terms["observed"].map(of_row.astype("Int64"))),
        )
        table = measured.frame()[["observed", "updated", "target", "change"]]
        self._write(
            "influence", step, identity, table.assign(observed=table["observed"].map(of_row))
        )

    def _write(self, kind: str, step: int, identity: str, table: pd.DataFrame) -> None:
        """Write one table with its step and identity."""
        whole = table.assign(step=step)[["step", *table.columns]]
        write_table(self.file(kind, step), whole, _stamp(identity))

    def first_tokens(self, rows: list[int]) -> list[list[int]] | None:
        """Return the first checkpoint's top tokens, `[n, k]` in the order of `rows`, if known."""
        try:
            table = pd.read_parquet(self.path / "first_tokens.parquet", partitioning=None)
        except FileNotFoundError:
            return None
        by_prompt = table.sort_values("rank").groupby("prompt")["token"].apply(list)
        return [by_prompt[row] for row in rows]

    def require_first_tokens_of(self, step: int, identity: str) -> None:
        """Raise if the tokens that are read are those of another checkpoint of that name.

        Args:
            step: which is measured now.
            identity: of its checkpoint.

        Raises:
            UserError: if they are: the kernels of the other steps were read at them.
        """
        about = table_metadata(self.path / "first_tokens.parquet") or {}
        if about.get(STEP) == str(step) and not same_identity(about.get(IDENTITY), identity):
            raise UserError(
                f"the kernels in {self.path} are read at the top tokens of an earlier checkpoint "
                f"of step {step}: give another --output-dir, or --overwrite"
            )

    def write_first_tokens(self, rows: list[int], tokens: Tensor, step: int, identity: str) -> None:
        """Write the first checkpoint's top tokens, `[n, k]`, unless they are there.

        Args:
            rows: the prompts' numbers.
            tokens: theirs.
            step: the checkpoint's.
            identity: the checkpoint's.
        """
        path = self.path / "first_tokens.parquet"
        if not self.has_first_tokens:
            flat = [
                {"prompt": row, "rank": rank, "token": token}
                for row, block in zip(rows, tokens.tolist(), strict=True)
                for rank, token in enumerate(block)
            ]
            write_table(path, pd.DataFrame(flat), {**_stamp(identity), STEP: str(step)})

    def of_others(self, step: int, identity: str) -> list[str]:
        """Return which tables of a step were measured on another checkpoint of that name."""
        measured = {kind: self.measured(kind, step) for kind in MEASURED}
        return [
            k for k, of in measured.items() if of is not None and not same_identity(of, identity)
        ]

    def discard_others(self, step: int, identity: str) -> None:
        """Remove a step's tables that were measured on another checkpoint of that name.

        Args:
            step: whose.
            identity: of the tables that stay.
        """
        for kind in self.of_others(step, identity):
            for name in (kind, *COMPANIONS.get(kind, ())):
                self.file(name, step).unlink(missing_ok=True)

    def set_aside(self, step: int, settings: MeasureSettings) -> None:
        """Move a step's tables to `unverified/`, where nothing reads them as measurements.

        Args:
            step: one whose numbers turned out not to be those of its checkpoint.
            settings: by which they were measured; what others measured before stays.
        """
        measured = [kind for kind in MEASURED if getattr(settings, kind) is not None]
        for kind in (name for each in measured for name in (each, *COMPANIONS.get(each, ()))):
            file = self.file(kind, step)
            if file.is_file():
                (self.path / "unverified" / kind).mkdir(parents=True, exist_ok=True)
                os.replace(file, self.path / "unverified" / kind / file.name)

    def note(self, state: str, **details: Any) -> None:
        """Append one event: what happened to a checkpoint, and when."""
        path = self.path / f"events-{socket.gethostname()}-{os.getpid()}.jsonl"
        line = json.dumps({"time": round(time.time(), 3), "state": state, **details})
        with path.open("ab+") as file:
            # A process killed while it wrote leaves half a line; ours must not be glued to it.
            torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write((("\n" if torn else "") + line + "\n").encode())


def _stamp(identity: str) -> dict[str, str]:
    """Return what every table carries: of which checkpoint it is, and in which format."""
    return {IDENTITY: identity, "ntkprobe.schema": str(SCHEMA_VERSION)}


def _renumbered(table: pd.DataFrame, of_row: pd.Series) -> pd.DataFrame:
    """Return pairs numbered by row of `prompts.parquet`."""
    columns = {name: table[name].map(of_row) for name in ("observed", "updated")}
    return table.assign(**columns)
