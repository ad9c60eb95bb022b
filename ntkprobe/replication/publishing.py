"""A copy of a replication's measurements that can be published: no texts, no places of files.

What the report reads is copied. Prompts are replaced by digests, under which the same prompt is
found in every table; answers by `WITHHELD`, with the verdicts and refusals that were read from
them. Weights, activations and all but the first step's parts of the kernel are left out.
"""

import json
import shutil
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..evaluation import Evaluation
from ..prompts.prompt_set import normalised
from ..storage import write_json, write_table
from ..trajectory import Trajectory
from .results import REFUSED, SEEMINGLY, TOXIC, refused_table

WITHHELD = "(withheld)"
TEXTS = ("prompt", "text", "response")
"""Columns of prompts and pairs that hold texts."""

MEASURED = ("kernel", "refusal", "influence", "terms")
"""Tables of a measurement that are copied whole."""


def publish(out: Path, place: Path) -> None:
    """Copy what a report is made of, without texts and places.

    Args:
        out: the output folder of a replication.
        place: the copy's folder; what it held of a replication is replaced.

    Raises:
        UserError: if there is no replication.
    """
    if not (out / "replication.json").is_file():
        raise UserError(f"no replication in {out}: make one with `ntkprobe replicate`")
    for name in ("done", "eval", "ntk", "start", "mitigations"):
        shutil.rmtree(place / name, ignore_errors=True)
    for path in (out / "replication.json", out / "choice.json", *(out / "done").glob("[!.]*.json")):
        if path.is_file():
            write_json(place / path.relative_to(out), without_places(json.loads(path.read_text())))
    for path in (out / "mitigations").glob("*.unfit.json"):
        write_json(place / path.relative_to(out), json.loads(path.read_text()))
    done = {path.stem.partition("-")[2] for path in (out / "done").glob("evaluate-*.json")}
    for name in sorted(done & {path.name for path in (out / "eval").glob("*")}):
        _evaluation(out / "eval" / name, place / "eval" / name)
    for path in sorted(out.glob("ntk/*/run.json")) + sorted(out.glob("start/*/run.json")):
        _measurement(path.parent, place / path.parent.relative_to(out))
    if (out / "labels.csv").is_file():
        labels = pd.read_csv(out / "labels.csv", keep_default_na=False)
        labels.drop(columns=["prompt", "answer"]).to_csv(place / "labels.csv", index=False)


def without_places(value: Any) -> Any:
    """Return JSON with the names of files in place of their full paths."""
    if isinstance(value, dict):
        return {without_places(key): without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_places(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def without_texts(table: pd.DataFrame, columns: Iterable[str] = TEXTS) -> pd.DataFrame:
    """Return a table with digests in place of texts."""
    texts = {name: table[name].map(_digest) for name in columns if name in table}
    return table.assign(**texts)


def _digest(text: Any) -> Any:
    """Return a digest of a text, the same whatever its case and spacing; no text has none."""
    return sha256(normalised(text).encode()).hexdigest()[:16] if isinstance(text, str) else text


def _evaluation(folder: Path, place: Path) -> None:
    """Copy an evaluation: prompts as digests, final verdicts, and which answers are refusals."""
    found = Evaluation(folder)
    write_json(place / "run.json", without_places(found.settings))
    verdicts = found.verdicts()
    for name in found.benchmarks:
        write_table(place / "prompts" / f"{name}.parquet", without_texts(found.prompts(name)))
        answers = found.answers(name).assign(answer=WITHHELD)
        write_table(place / "answers" / name / "batch-00000.parquet", answers)
        for judge, rows in verdicts.loc[verdicts["benchmark"] == name].groupby("judge"):
            path = place / "verdicts" / name / f"{judge}.parquet"
            write_table(path, rows[["id", "verdict"]].reset_index(drop=True))
    write_table(place / REFUSED, refused_table(found))
    if (folder / "losses.parquet").is_file():
        write_table(place / "losses.parquet", pd.read_parquet(folder / "losses.parquet"))


def _measurement(folder: Path, place: Path) -> None:
    """Copy a measurement: prompts and pairs as digests, and the tables that a report reads."""
    run = Trajectory(folder)
    write_json(place / "run.json", without_places(run.settings))
    for name in ("prompts", "updated"):
        path = folder / f"{name}.parquet"
        if path.is_file():
            table = pd.read_parquet(path)  # its column `prompt` is a number
            write_table(place / path.name, without_texts(table, ("text", "response")))
    for path in (p for name in MEASURED for p in sorted((folder / name).glob("step-*.parquet"))):
        write_table(place / path.relative_to(folder), pd.read_parquet(path))
    if (folder / "bounds.parquet").is_file():
        write_table(place / "bounds.parquet", pd.read_parquet(folder / "bounds.parquet"))
    for path in sorted((folder / "parts").glob("step-*.parquet"))[:1]:
        parts, group = pd.read_parquet(path), run.prompts.set_index("prompt")["group"]
        ends = [parts[column].map(group) for column in ("observed", "updated")]
        across = [(a == SEEMINGLY) & (b == TOXIC) for a, b in (ends, ends[::-1])]
        kept = parts.loc[across[0] | across[1]].reset_index(drop=True)
        write_table(place / "parts" / path.name, kept)
