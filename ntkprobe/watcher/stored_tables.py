"""What a folder of measurements holds, as far as it is only read: its record and its tables."""

import re
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings import same_identity
from ..storage import read_record, step_files, step_of
from .settings import MeasureSettings

COMPANIONS = {"kernel": ("tokens", "parts", "blocks"), "influence": ("terms",)}
MEASURED = ("kernel", "refusal", "activations", "directions", "influence")
TABLES = (*MEASURED, *(name for names in COMPANIONS.values() for name in names))
ONCE = ("prompts.parquet", "updated.parquet", "first_tokens.parquet")  # of all steps
TENSORS = ("activations", "directions", "blocks")  # the others are Parquet
IDENTITY, STEP = "ntkprobe.identity", "ntkprobe.step"
OF_OTHERS = ("benchmarks", "checkpoints")
"""Entries of an evaluation's `run.json` and of an attribution's, which no measurement has."""


def require_measurements(path: Path) -> None:
    """Raise if the record in a folder is another command's, such as an evaluation's.

    Args:
        path: of the folder, which need not be there; a damaged record is reported elsewhere.

    Raises:
        UserError: if it is.
    """
    try:
        record = read_record(path / "run.json", "")
    except UserError:
        return
    known = all(isinstance(record.get(name, {}), dict) for name in ("prompts", "model"))
    if not known or any(name in record for name in OF_OTHERS):
        raise UserError(f"{path} is no measurement's folder: give another --output-dir")


def asked_kinds(settings: MeasureSettings) -> list[str]:
    """Return which of `MEASURED` is asked for."""
    return [kind for kind in MEASURED if getattr(settings, kind) is not None]


class StoredTables:
    """The tables of a folder, which need not be there.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` says; empty without one.

        Raises:
            UserError: if it cannot be read, or a newer version wrote it.
        """  # ruff: ignore[docstring-extraneous-exception]
        return read_record(self.path / "run.json", "give another --output-dir, or --overwrite")

    @property
    def settled(self) -> dict[str, Any]:
        """What `run.json` says once a step is measured: before that, no table depends on it."""
        return self.record if self.steps_in(self.path) else {}

    def file(self, kind: str, step: int) -> Path:
        """Return where a table of a step is, or would be."""
        suffix = "safetensors" if kind in TENSORS else "parquet"
        return self.path / kind / f"step-{step:08d}.{suffix}"

    def measured(self, kind: str, step: int) -> str | None:
        """Return the identity of the checkpoint that a table was measured on; None without one."""
        path = self.file(kind, step)
        found = _tensor_metadata(path) if kind in TENSORS else table_metadata(path)
        return None if found is None else found.get(IDENTITY, "")

    @staticmethod
    def steps_in(path: Path) -> set[int]:
        """Return the steps that have been measured into a folder, if it is there."""
        return {step_of(file) for kind in MEASURED for file in step_files(path / kind)}

    @staticmethod
    def seconds_in(path: Path) -> list[float]:
        """Return how long each measurement in a folder took."""
        text = "\n".join(file.read_text() for file in path.glob("events-*.jsonl"))
        return [float(s) for s in re.findall(r'"state": "done".*"seconds": ([\d.]+)', text)]

    def missing(self, settings: MeasureSettings, step: int, identity: str) -> list[str]:
        """Return which tables a checkpoint lacks.

        Args:
            settings: what is asked for.
            step: the checkpoint's.
            identity: the checkpoint's: tables of another one of that name do not count.

        Returns:
            Some of `MEASURED`.
        """
        return [
            kind
            for kind in asked_kinds(settings)
            if not same_identity(self.measured(kind, step), identity)
        ]

    @property
    def has_first_tokens(self) -> bool:
        """Whether the first checkpoint's top tokens are known."""
        return (self.path / "first_tokens.parquet").is_file()


def table_metadata(path: Path) -> dict[str, str] | None:
    """Return the metadata of a Parquet file; None where there is no whole file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    return {key.decode(): value.decode(errors="replace") for key, value in metadata.items()}


def _tensor_metadata(path: Path) -> dict[str, str] | None:
    """Return the metadata of a safetensors file; None where there is no whole file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (FileNotFoundError, SafetensorError):
        return None
