"""The prompts of a benchmark, read from the hub, from a file, or the embedded ones.

An argument of `--benchmark` is NAME, NAME=FILE, FILE, or FILE=safe and FILE=unsafe for a file
without a column for the kind of its prompts. FILE may be some rows of a file, as in
FILE:COLUMN=VALUE. Of a user's own file, a column is the text and one its kind.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ...errors import UserError, one_line
from ...prompts.files import (
    GROUP_COLUMNS,
    TEXT_COLUMNS,
    columns_of,
    prompt_of,
    text_column,
)
from ...prompts.selections import PromptSelection
from .catalogue import BENCHMARKS
from .schema import COLUMNS, KINDS, Benchmark, Hub, tabulated

if TYPE_CHECKING:
    import pandas as pd

EMBEDDED = "tiny"
"""The name of the embedded prompts, which the embedded models are measured on."""
_KIND_COLUMNS = ("kind", *GROUP_COLUMNS)
_OWN_KINDS = {
    "safe": "safe",
    "unsafe": "unsafe",
    "normal": "safe",
    "seemingly_toxic": "safe",
    "toxic": "unsafe",
}


@dataclass(frozen=True)
class BenchmarkPrompts:
    """The prompts of one benchmark that a model is asked.

    Attributes:
        name: the benchmark's.
        table: columns `COLUMNS`, one row a prompt.
        source: where they were read from.
        licence: of the prompts, where it is known.
        published: how many rows the published file has, where it is known.
        found: rows of the file that was read.
        whole: all prompts, where only some are asked.
    """

    name: str
    table: "pd.DataFrame"
    source: str
    licence: str = "unknown"
    published: int | None = None
    found: int = 0
    whole: int | None = None

    @property
    def note(self) -> str:
        """A warning if the file that was read is not the published one; else empty."""
        if self.published in (None, self.found):
            return ""
        return (
            f"{self.name}: {self.source} has {self.found} rows, the published file "
            f"{self.published}: rates are not comparable with published ones"
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the table, order included."""
        rows = self.table[COLUMNS].to_numpy().tolist()
        return sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()

    def first(self, limit: int | None) -> "BenchmarkPrompts":
        """Return the first `limit` prompts of each kind; all for None.

        Args:
            limit: 1 or more.

        Returns:
            The prompts.

        Raises:
            UserError: if `limit` is less than 1.
        """
        if limit is None:
            return self
        if limit < 1:
            raise UserError(f"--limit {limit}: give 1 or more")
        kept = self.table.groupby("kind", sort=False).head(limit).reset_index(drop=True)
        return replace(self, table=kept, whole=self.whole or len(self.table))

    def record(self) -> dict[str, Any]:
        """Return the record in `run.json`."""
        return {
            "source": self.source,
            "licence": self.licence,
            "published": self.published,
            "found": self.found,
            "prompts": len(self.table),
            "of": self.whole or len(self.table),
            "digest": self.digest,
        }


def read_benchmark(word: str) -> BenchmarkPrompts:
    """Return the prompts that an argument of `--benchmark` names.

    Args:
        word: NAME, NAME=FILE, FILE or FILE=KIND.

    Returns:
        Its prompts.

    Raises:
        UserError: if there is no such benchmark, or it cannot be read.
    """
    name, equals, rest = word.partition("=")
    if name == EMBEDDED and not equals:
        from ...tiny import measure_path

        return read_own(PromptSelection(measure_path()), EMBEDDED, "Apache-2.0")
    if name in BENCHMARKS:
        return _published(BENCHMARKS[name], PromptSelection.parse(rest) if equals else None)
    file = PromptSelection.parse(word)
    if file.mark in (None, *KINDS) and file.path.suffix:
        return read_own(file)
    if file.mark not in (None, *KINDS) and file.path.is_file():
        place = f"{file}={file.mark}"
        raise UserError(f"unknown kind {file.mark!r} in {place!r}: choose from {list(KINDS)}")
    known = ", ".join([EMBEDDED, *BENCHMARKS])
    raise UserError(f"no benchmark {name!r}: choose from {known}, or give a file, as FILE=safe")


def _published(benchmark: Benchmark, file: PromptSelection | None) -> BenchmarkPrompts:
    """Return a benchmark's prompts from its file, or from the hub.

    Raises:
        UserError: if there is neither.
    """
    if file is not None:
        numbered, where = file.unmarked().numbered(), str(file)
    elif benchmark.hub is None:
        raise UserError(
            f"{benchmark.name} is a file that no hub has: get it from {benchmark.source} and give "
            f"--benchmark {benchmark.name}=FILE"
        )
    else:
        name = benchmark.name
        instead = f"give its file: --benchmark {name}=FILE ({benchmark.source})"
        numbered = list(enumerate(hub_rows(benchmark.hub, name, instead), start=1))
        where = f"hub:{benchmark.hub.path}"
    return BenchmarkPrompts(
        name=benchmark.name,
        table=benchmark.table(numbered, where),
        source=where,
        licence=benchmark.licence,
        published=benchmark.rows,
        found=len(numbered),
    )


def hub_rows(hub: Hub, name: str, instead: str) -> list[dict[str, Any]]:
    """Return the rows of a dataset on the hub.

    Args:
        hub: the dataset.
        name: what the rows are called here.
        instead: what to do where the hub does not give them.

    Raises:
        UserError: if `datasets` is not installed, or the hub does not give them.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"{name} comes from the hub, for which `datasets` is needed: "
            f"pip install 'ntkprobe[benchmarks]', or {instead}"
        ) from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    try:
        return list(load_dataset(hub.path, hub.config, split=hub.split))
    except Exception as error:  # datasets raises what its many parts raise
        text = f"{type(error).__name__} {error}"
        why = f"cannot be read from the hub ({one_line(text)[:160]}): try again"
        if re.search(r"gated|401|403|[Aa]uthenticat|restricted", text):
            why = "is gated: accept its terms on huggingface.co and set HF_TOKEN"
        raise UserError(f"{hub.path} {why}, or {instead}") from error


def read_own(
    file: PromptSelection, name: str | None = None, licence: str = "unknown"
) -> BenchmarkPrompts:
    """Return the prompts of a file that is no published benchmark.

    Args:
        file: CSV, JSONL, JSON, Parquet or text, or some of its rows; its mark is the kind of all of
            them, which may not contradict the file's own.
        name: else the file's.
        licence: if it is known.

    Returns:
        Its prompts.

    Raises:
        UserError: if a column is missing, a kind is none, or a pair no contrast.
    """
    path, kind = file.path, file.mark
    numbered = file.numbered()
    records = [record for _, record in numbered]
    columns = columns_of(records)
    column = next((column for column in _KIND_COLUMNS if column in columns), None)
    if not any(map(text_column, records)):
        raise UserError(
            f"{path} has no prompts: its columns are {columns}, needed is one of "
            f"{list(TEXT_COLUMNS)}"
        )
    if column is None and kind is None:
        raise UserError(
            f"{path} does not say what its prompts are: add a column kind (safe or unsafe), or "
            f"write {path}=safe or {path}=unsafe"
        )
    rows = [
        {
            "id": _named(record.get("id")) or str(number),
            "prompt": prompt_of(record),
            "kind": _own_kind(record, column, kind, f"{path}, row {number}"),
            "type": str(record.get("type") or (record.get("group") or "")),
        }
        for number, record in numbered
    ]
    table = tabulated(rows, str(path))
    table = table.assign(pair=[_named(record.get("pair")) for record in records])
    _require_contrasts(table, [number for number, _ in numbered], file)
    label, source = name or _file_name(file), name or str(file)
    return BenchmarkPrompts(label, table, source, licence, None, len(records))


def _named(value: Any) -> str:
    """Return an id as text, empty for none; a column of numbers with gaps has them as `1.0`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _require_contrasts(table: "pd.DataFrame", numbers: list[int], file: PromptSelection) -> None:
    """Refuse a pair that names no contrast: pairs would be counted of prompts that are none.

    Raises:
        UserError: if a prompt's pair is of its own kind, or not there although the file is whole.
    """
    kinds = dict(zip(table["id"], table["kind"], strict=True))
    whole = not file.conditions and file.mark is None
    for number, row in zip(numbers, table.itertuples(index=False), strict=True):
        other = kinds.get(row.pair)
        if row.pair and (other == row.kind or (other is None and whole)):
            what = "is no id" if other is None else f"is {other}, too"
            raise UserError(
                f"{file.path}, row {number}: pair is {row.pair!r}, which {what}; it names the id "
                "of the prompt's contrast of the other kind: correct it, or leave the column out"
            )


def _own_kind(record: Mapping[str, Any], column: str | None, given: str | None, where: str) -> str:
    """Return the kind of prompt in a row of a user's file.

    Raises:
        UserError: if it is not an allowed one, or the given kind contradicts it.
    """
    said = str(record.get(column) or "").strip() if column else ""
    own = _OWN_KINDS.get(said)
    if given is not None:
        if own not in (None, given):
            raise UserError(f"{where}: {column} is {said!r}: leave out the kind {given!r}")
        return given
    if own is None:
        raise UserError(f"{where}: {column} is {said!r}, allowed are {list(_OWN_KINDS)}")
    return own


def _file_name(file: PromptSelection) -> str:
    """Return the name of a benchmark from its file's name and selection, fit for file names."""
    said = "_".join([file.path.stem, *map(str, file.conditions)])
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", said).strip("._")
    return f"own_{name}" if not name or name in (*BENCHMARKS, "tiny") else name
