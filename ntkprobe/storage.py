"""Atomic file writes: under a hidden name, fsynced, then moved into place.

A killed run therefore leaves complete files only; readers that list a folder never see the hidden
names (pandas, pyarrow and DuckDB skip names that begin with a dot). Beside a number stand the
versions of what computed it, and in a folder's record the version of its form.
"""

import json
import os
import platform
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import yaml

from .errors import UserError, one_line

SCHEMA_VERSION = 1
"""Of the folders that ntkprobe writes; `require_schema` refuses another."""

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a hidden sibling of `path`, which on a clean exit is fsynced and becomes `path`.

    Args:
        path: the file to write; its folder is created.

    Yields:
        The hidden path to write to, on the same file system.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield hidden
        with hidden.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def write_table(path: Path, table: "pd.DataFrame", metadata: dict[str, str] | None = None) -> None:
    """Write a table as one Parquet file (zstd), whole or not at all.

    Args:
        path: where to.
        table: tidy rows; the index is not stored.
        metadata: key-value strings kept in the Parquet schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **(metadata or {})})
    with replacing(path) as hidden:
        pq.write_table(arrow, hidden, compression="zstd")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with replacing(path) as hidden:
        hidden.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_record(path: Path, instead: str) -> dict[str, Any]:
    """Return the settings that a folder's JSON file holds; none where there is no file.

    Args:
        path: of the file.
        instead: what to do if it cannot be read.

    Returns:
        Its contents.

    Raises:
        UserError: if it is damaged, holds something else, or has another form than this one.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # the latter where a file is named as folder
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): {instead}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no settings: {instead}")
    require_schema(found, path, instead)
    return found


def require_schema(record: Mapping[str, Any], where: object, instead: str) -> None:
    """Raise if a record is of another form than this ntkprobe's; one that says nothing is not.

    Args:
        record: what a folder says of itself.
        where: the file, for the message.
        instead: what to do, besides using the version that wrote it.

    Raises:
        UserError: naming both forms.
    """
    found = record.get("schema_version", SCHEMA_VERSION)
    if found != SCHEMA_VERSION:
        raise UserError(
            f"{where} has format {found!r}, this ntkprobe reads format {SCHEMA_VERSION}: use the "
            f"version that wrote it, or {instead}"
        )


def write_tensors(
    path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write named tensors as safetensors, whole or not at all.

    Args:
        path: where to.
        tensors: by name.
        metadata: key-value strings kept in the header.
    """
    from safetensors.torch import save_file

    with replacing(path) as hidden:
        hidden.touch()
        readers = hidden.stat().st_mode  # safetensors would leave it to the owner alone
        save_file(tensors, hidden, metadata)
        hidden.chmod(readers)


def read_tensors(path: Path) -> "dict[str, np.ndarray]":
    """Return the tensors of a safetensors file by name, without torch.

    Args:
        path: of the file; a `FileNotFoundError` without one.

    Returns:
        The tensors.

    Raises:
        UserError: if it is not whole.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not whole: remove it and measure again") from error


def read_table(path: Path, columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """Return a Parquet file as a table.

    Args:
        path: of the file.
        columns: those wanted; None for all.

    Raises:
        FileNotFoundError: if there is none.
        UserError: if it is not whole.
    """
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is not whole: remove it, and run what made it again: it makes what is missing"
        ) from error


def read_tables(
    paths: Iterable[Path], columns: Sequence[str], kinds: Mapping[str, str]
) -> "pd.DataFrame":
    """Return several Parquet files as one table.

    Args:
        paths: of files, one of which may vanish meanwhile.
        columns: come first.
        kinds: the type of a column where there is no file.

    Raises:
        UserError: if a file is not whole.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for path in paths:
        try:
            tables.append(pq.read_table(path, partitioning=None))
        except FileNotFoundError:  # removed since listed
            continue
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} is not whole: remove it and measure again") from error
    if not tables:
        return pd.DataFrame({name: pd.Series(dtype=kinds.get(name)) for name in columns})
    # Columns that later versions add are missing from older files: unite the schemas.
    table = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    return table[[*columns, *(name for name in table.columns if name not in columns)]]


def step_files(folder: Path, suffix: str = "*") -> list[Path]:
    """Return the files of steps in a folder, by step.

    Files of other names are none of them, such as the copies that programs which synchronise
    folders make: `step-00000100 (1).parquet`.

    Args:
        folder: which need not be there.
        suffix: such as `parquet`; of any kind by default.
    """
    found = (p for p in folder.glob(f"step-*.{suffix}") if _STEP.fullmatch(p.stem))
    return sorted(found, key=step_of)


_STEP = re.compile(r"step-[0-9]{8,}")


def step_of(path: Path) -> int:
    """Return the step in a file name such as `step-00000100.parquet`."""
    return int(path.stem.removeprefix("step-"))


def versions() -> dict[str, str]:
    """Return the versions of what computes the numbers, which are recorded beside them."""
    found = {"python": platform.python_version()}
    for name in ("ntkprobe", "torch", "transformers", "peft", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def training_settings(run: Path) -> dict[str, Any]:
    """Return the settings that a run of `ntkprobe train` recorded; none where it did not.

    Raises:
        UserError: if they cannot be read.
    """
    file = run / "training.yaml"
    if not file.is_file():
        return {}
    try:
        found = yaml.safe_load(file.read_text("utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {file}: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no settings: it is none of ntkprobe train's")
    return found
