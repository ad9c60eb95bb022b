"""The published files that the replication reads, and where each is from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..evaluation.benchmarks.schema import Hub
from ..evaluation.benchmarks.sources import hub_rows
from ..prompts.files import read_rows

STL = "github.com/vinid/safety-tuned-llamas, data"


@dataclass(frozen=True)
class DataFile:
    """A published file.

    Attributes:
        names: under which it may lie in the data folder, the published one first.
        source: where it is published.
        hub: dataset, configuration and split on the hub; None for what is a file elsewhere.
        columns: that it must have, one of each.
    """

    names: tuple[str, ...]
    source: str
    columns: tuple[tuple[str, ...], ...]
    hub: tuple[str, str | None, str] | None = None


FILES = {
    "xstest": DataFile(
        ("xstest_prompts.csv",),
        "github.com/paul-rottger/xstest",
        (("prompt",), ("label",), ("type",)),
        ("Paul/XSTest", None, "train"),
    ),
    "oktest": DataFile(("OKTest.csv",), "github.com/InvokerStark/OverKill, data", (("prompt",),)),
    "coconot_contrast": DataFile(
        ("coconot_contrast_eval.jsonl",),
        "huggingface.co/datasets/allenai/coconot (contrast, test)",
        (("prompt",), ("category",)),
        ("allenai/coconot", "contrast", "test"),
    ),
    "alpaca": DataFile(
        ("alpaca_data.json", "alpaca_data_cleaned.json", "alpaca_union.jsonl"),
        "github.com/tatsu-lab/stanford_alpaca",
        (("instruction",), ("output",)),
        ("tatsu-lab/alpaca", None, "train"),
    ),
    "safety": DataFile(
        ("safety_only_data_Instructions.json",),
        f"{STL}/training",
        (("instruction",), ("output",)),
    ),
    "i_malicious": DataFile(
        ("I-MaliciousInstructions.json",), f"{STL}/evaluation", (("prompt", "text"),)
    ),
    "i_cona": DataFile(("I-CoNa.json",), f"{STL}/evaluation", (("prompt", "text"),)),
    "i_controversial": DataFile(
        ("I-Controversial.json",), f"{STL}/evaluation", (("prompt", "text"),)
    ),
    "q_harm": DataFile(("Q-Harm.json",), f"{STL}/evaluation", (("prompt", "text"),)),
    "advbench": DataFile(
        ("harmful_behaviors.csv",),
        "github.com/llm-attacks/llm-attacks, data/advbench",
        (("goal", "prompt"),),
        ("walledai/AdvBench", None, "train"),
    ),
}

SAFETY_SETS = ("i_malicious", "i_cona", "i_controversial", "q_harm", "advbench")
OVER_REFUSAL_SETS = ("oktest", "coconot_contrast", "xstest")


def find_files(folder: Path | None, *, hub: bool = False) -> dict[str, Path]:
    """Return where each file lies: in the folder itself, or in one of its folders.

    Args:
        folder: the data folder; None for none.
        hub: whether what the folder lacks, and the hub has, is taken from there.

    Returns:
        Paths by name, without those that are taken from the hub.


    Raises:
        UserError: naming every file that is missing, and where it is published.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(f"no folder {folder}: --data takes one with the published files")
    found = {
        name: path
        for name, file in FILES.items()
        if folder is not None and (path := _in_folder(folder, file.names)) is not None
    }
    lacking = [file for name, file in FILES.items() if name not in found and not (hub and file.hub)]
    if lacking:
        listed = "; ".join(f"{file.names[0]} ({file.source})" for file in lacking)
        there = ", ".join(file.names[0] for file in lacking if file.hub)
        raise UserError(
            f"{len(lacking)} files are missing in {folder or 'a folder for --data'}: {listed}"
            + (f". --hub takes from the Hugging Face hub: {there}" if there else "")
        )
    return found


def read_file(name: str, places: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the rows of a file, from its place or from the hub.

    Args:
        name: one of `FILES`.
        places: from `find_files`.

    Returns:
        Its rows.

    Raises:
        UserError: if it cannot be had, or lacks a column.
    """
    file = FILES[name]
    rows = read_rows(places[name]) if name in places else _from_hub(file)
    where = places.get(name, file.hub and file.hub[0])
    for number, row in enumerate(rows or [{}], start=1):
        lacking = next((c for c in file.columns if not row.keys() & set(c)), None)
        if lacking:
            raise UserError(
                f"{where} is not {file.names[0]} as published ({file.source}): row {number} has"
                f" the columns {sorted(row)}, but no {lacking[0]!r}"
            )
    return rows


def digests(places: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of every file."""
    found = {}
    for name, path in places.items():
        with path.open("rb") as opened:
            found[name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


def hub_names(places: Mapping[str, Path]) -> dict[str, str]:
    """Return where on the hub every set is that has no file."""
    return {
        name: f"hub:{file.hub[0]}"
        for name, file in FILES.items()
        if name not in places and file.hub
    }


def _in_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first file of one of these names, in the folder or one below it."""
    for name in names:
        for path in (folder / name, *sorted(folder.glob(f"*/{name}"))):
            if path.is_file():
                return path
    return None


def _from_hub(file: DataFile) -> list[dict[str, Any]]:
    """Return the rows of a dataset on the hub.

    Raises:
        UserError: if it cannot be had.
    """
    name = file.names[0]
    if file.hub is None:
        raise UserError(f"{name} is not on the hub: get it from {file.source}")
    return hub_rows(Hub(*file.hub), name, f"give --data with {name} of {file.source}")
