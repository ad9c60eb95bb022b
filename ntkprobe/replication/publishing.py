"""A copy of a replication's measurements that can be published: no texts, no places of files.

Verdicts, tables of refusals and the figures of kernels are made from it again. Prompts are replaced
by digests, under which the same prompt is found in every table. Answers are replaced by `WITHHELD`,
with the verdicts and refusals that were read from them; so is why a method could not be fitted,
which may name words of answers. Weights and all but the first step's parts of the kernel are left
out; of activations the numbers of figures 7 and 8 are there. Figures that name prompts name
digests.
"""

import json
import shutil
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ..errors import UserError
from ..evaluation import Evaluation
from ..figures import fig7, fig8
from ..prompts.prompt_set import normalised
from ..storage import replacing, write_json, write_table
from ..training.runs import REPORT, SETTINGS
from ..trajectory import Trajectory
from .labels import FILTERS, SAMPLE, readings
from .plan import TIMED
from .results import REFUSED, SEEMINGLY, TOXIC, refused_table

WITHHELD = "(withheld)"

MEASURED = ("kernel", "refusal", "influence", "terms")
"""Tables of a measurement that are copied whole."""

LABELLED = ["id", "model", "benchmark", *FILTERS, "label"]
"""Columns of the answers labelled by hand."""


def publish(out: Path, place: Path) -> None:
    """Copy what a report is made of, without texts and places.

    Args:
        out: the output folder of a replication.
        place: the copy's folder; what it held is replaced.

    Raises:
        UserError: if there is no replication, the copy would lie in it or around it, or its folder
            holds something else.
    """
    if not (out / "replication.json").is_file():
        raise UserError(f"no replication in {out}: make one with `ntkprobe replicate`")
    here, there = out.resolve(), place.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UserError(f"{place} is not apart from {out}: choose another folder for the copy")
    if place.is_dir() and any(place.iterdir()) and not (place / "replication.json").is_file():
        raise UserError(f"{place} holds something else: choose an empty or new folder")
    shutil.rmtree(place, ignore_errors=True)
    files = [out / "replication.json", out / "choice.json", *(out / "done").glob("[!.]*.json")]
    runs = [path for name in TIMED for path in sorted((out / "runs").glob(f"{name}-[0-9]*"))]
    for path in filter(Path.is_file, [*files, *(run / REPORT for run in runs)]):
        write_json(place / path.relative_to(out), without_places(json.loads(path.read_text()), out))
    for path in filter(Path.is_file, (run / SETTINGS for run in runs)):
        settings = without_places(yaml.safe_load(path.read_text("utf-8")), out)
        with replacing(place / path.relative_to(out)) as hidden:
            hidden.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    for path in (out / "mitigations").glob("*.unfit.json"):
        write_json(place / path.relative_to(out), {"why": WITHHELD})
    done = {path.stem.partition("-")[2] for path in (out / "done").glob("evaluate-*.json")}
    for name in sorted(done & {path.name for path in (out / "eval").glob("*")}):
        _evaluation(out / "eval" / name, place / "eval" / name, out)
    for path in sorted(out.glob("ntk/*/run.json")) + sorted(out.glob("start/*/run.json")):
        _measurement(path.parent, place / path.parent.relative_to(out), out)
    for path in sorted(out.glob("activations/*/run.json")):
        measured = {path.parent.name.rpartition("-")[0]: Trajectory(path.parent)}
        for figure in (fig7, fig8):
            name = f"{figure.__name__.rpartition('.')[2]}.parquet"
            write_table(place / "activations" / path.parent.name / name, figure.numbers(measured))
    for path in sorted(out.glob("start/*/bounds.parquet")):  # of a stage of their own
        write_table(place / path.relative_to(out), pd.read_parquet(path))
    for path in (out / SAMPLE, *readings(out)):
        if path.is_file():
            labels = pd.read_csv(path, keep_default_na=False)
            labels.reindex(columns=LABELLED).to_csv(place / path.name, index=False)


def without_places(value: Any, out: Path) -> Any:
    """Return JSON in which every path is the name of its file or folder alone.

    Args:
        value: what `json.loads` returns.
        out: the replication, whose own folder may be named relative to the working directory.
    """
    if isinstance(value, dict):
        return {without_places(k, out): without_places(each, out) for k, each in value.items()}
    if isinstance(value, list):
        return [without_places(each, out) for each in value]
    if isinstance(value, str) and ("/" in value or "\\" in value) and _is_place(value, out):
        return Path(value.replace("\\", "/")).name
    return value


def _is_place(text: str, out: Path) -> bool:
    """Return whether a text names a file or folder, or holds the path of one."""
    inside = any(str(each) in text for each in (out, out.resolve(), Path.home()))
    path = Path(text)
    return inside or path.is_absolute() or text.startswith((".", "~", "file:")) or path.exists()


def without_texts(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Return a table with digests in place of the texts in some columns."""
    return table.assign(**{name: table[name].map(_digest) for name in columns if name in table})


def _digest(text: Any) -> Any:
    """Return a digest of a text without its case, punctuation and spacing; no text has none."""
    return sha256(normalised(text).encode()).hexdigest()[:16] if isinstance(text, str) else text


def _evaluation(folder: Path, place: Path, out: Path) -> None:
    """Copy an evaluation: prompts as digests, final verdicts, and which answers are refusals."""
    found = Evaluation(folder)
    write_json(place / "run.json", without_places(found.settings, out))
    verdicts = found.verdicts()
    for name in found.benchmarks:
        prompts = without_texts(found.prompts(name), ["prompt"])
        write_table(place / "prompts" / f"{name}.parquet", prompts)
        answers = found.answers(name).assign(answer=WITHHELD)
        write_table(place / "answers" / name / "batch-00000.parquet", answers)
        for judge, rows in verdicts.loc[verdicts["benchmark"] == name].groupby("judge"):
            path = place / "verdicts" / name / f"{judge}.parquet"
            write_table(path, rows[["id", "verdict"]].reset_index(drop=True))
    write_table(place / REFUSED, refused_table(found))
    if (folder / "losses.parquet").is_file():
        write_table(place / "losses.parquet", pd.read_parquet(folder / "losses.parquet"))


def _measurement(folder: Path, place: Path, out: Path) -> None:
    """Copy a measurement: prompts and pairs as digests, and the tables that a report reads."""
    run = Trajectory(folder)
    write_json(place / "run.json", without_places(run.settings, out))
    for path in (folder / "prompts.parquet", folder / "updated.parquet"):
        if path.is_file():
            table = pd.read_parquet(path)  # its column `prompt` is a number
            write_table(place / path.name, without_texts(table, ["text", "response"]))
    for path in (p for name in MEASURED for p in sorted((folder / name).glob("step-*.parquet"))):
        write_table(place / path.relative_to(folder), pd.read_parquet(path))
    for path in sorted((folder / "parts").glob("step-*.parquet"))[:1]:
        parts, group = pd.read_parquet(path), run.prompts.set_index("prompt")["group"]
        ends = [parts[column].map(group) for column in ("observed", "updated")]
        across = [(a == SEEMINGLY) & (b == TOXIC) for a, b in (ends, ends[::-1])]
        kept = parts.loc[across[0] | across[1]].reset_index(drop=True)
        write_table(place / "parts" / path.name, kept)
