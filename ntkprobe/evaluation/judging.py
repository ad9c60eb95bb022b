"""Judge the answers in a folder that have no verdict yet, and read and write files of verdicts.

A file of verdicts, `E/verdicts/BENCHMARK/JUDGE.parquet`, is rewritten after every chunk of answers,
so that a stopped run loses at most one chunk. The next run judges answers without a verdict,
answers that have changed since, and those whose requests failed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..prompts.reasoning import answered
from ..settings import require_same_settings
from ..storage import read_table, write_table
from .verdicts import ENDLESS, FAILED, Item, Judge, Verdict

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "verdict", "detail", "digest")
KEY = "ntkprobe.judge"
"""The key of a file's Parquet metadata under which the judge's identity is stored as JSON."""


def judge_answers(
    folder: Path, benchmark: str, judge: Judge, label: str, *, chunk: int = 64
) -> "pd.DataFrame":
    """Judge the answers of one benchmark that have no verdict yet.

    Args:
        folder: the evaluation, which holds `answers/BENCHMARK`.
        benchmark: its name.
        judge: the judge.
        label: its name in files and tables.
        chunk: answers judged between two writes of the file.

    Returns:
        All verdicts of this judge: `id`, `verdict`, `detail`, `digest` (of the answer judged,
        without the reasoning in front of it).
    """
    import pandas as pd

    from ..progress import progress as long_stage

    items = read_items(folder, benchmark)
    path = folder / "verdicts" / benchmark / f"{label}.parquet"
    identity = identity_of(judge)
    digests = {item.id: judged_digest(item.answer) for item in items}
    name = identity["judge"]
    rows = valid_rows(path, digests, identity, older={"judge": name} if label == name else {})
    missing = [item for item in items if item.id not in rows]
    with long_stage(
        total=len(missing), desc=f"{benchmark}, {label}", unit="answer", leave=False
    ) as progress:
        for start in range(0, len(missing), chunk):
            asked = missing[start : start + chunk]
            for item, verdict in zip(asked, _verdicts(judge, asked), strict=True):
                rows[item.id] = {**asdict(verdict), "digest": digests[item.id]}
            present = [rows[item.id] for item in items if item.id in rows]
            write_rows(path, present, COLUMNS, identity)
            progress.update(len(asked))
    return pd.DataFrame([rows[item.id] for item in items], columns=list(COLUMNS))


def identity_of(judge: Judge) -> dict[str, Any]:
    """Return what a file of verdicts records of its judge: never that of two different filters.

    Args:
        judge: its module's name is part of it, unless its own `identity` says otherwise.
    """
    name = type(judge).__module__.rpartition(".")[2]
    return {"asks": judge.asks, "judge": name, **getattr(judge, "identity", {})}


def judged_digest(answer: str) -> str:
    """Return the digest of an answer in a file of verdicts: of what a judge sees of it.

    Args:
        answer: the model's, with its reasoning, which is left out; one whose reasoning never ends
            has a digest of its own.
    """
    said = answered(answer)
    return digest(ENDLESS, answer) if said is None else digest(said)


def _verdicts(judge: Judge, items: Sequence[Item]) -> list[Verdict]:
    """Return a verdict for each item; items whose verdict is known are not shown to the judge."""
    given = {item.id: item.undetermined for item in items}
    asked = [item for item in items if given[item.id] is None]
    said = zip(asked, judge.judge([item.shown for item in asked]), strict=True)
    given |= {item.id: verdict for item, verdict in said}
    return [verdict for item in items if (verdict := given[item.id]) is not None]


def read_items(folder: Path, benchmark: str) -> list[Item]:
    """Return the answered prompts of a benchmark, in the order of its prompts.

    Args:
        folder: an evaluation.
        benchmark: the name of one of its benchmarks.

    Returns:
        At least one item.

    Raises:
        UserError: if there is none.
    """
    import pandas as pd

    shards = sorted((folder / "answers" / benchmark).glob("batch-*.parquet"))
    prompts = folder / "prompts" / f"{benchmark}.parquet"
    if not shards or not prompts.is_file():
        raise UserError(
            f"{folder} holds no answers to {benchmark!r}: run `ntkprobe evaluate` first"
        )
    answers = pd.concat([read_table(s, ["id", "answer"]) for s in shards])
    texts = dict(zip(answers["id"], answers["answer"], strict=True))
    asked = read_table(prompts, ["id", "prompt"])
    return [
        Item(name, prompt, texts[name])
        for name, prompt in zip(asked["id"], asked["prompt"], strict=True)
        if name in texts
    ]


def digest(*texts: str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of texts."""
    joined = "\0".join(texts)
    return sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def valid_rows(
    path: Path,
    digests: Mapping[str, str],
    identity: Mapping[str, Any],
    *,
    older: Mapping[str, Any] | None = None,
    instead: str = "move it away, or give this judge another label",
) -> dict[str, dict[str, str]]:
    """Return the valid rows of a file, by id: those of unchanged answers that did not fail.

    Args:
        path: of a file that `write_rows` wrote; it need not exist.
        digests: of the present answers, by id.
        identity: of the judge, which the file must have.
        older: what goes without saying in a file from before this was recorded.
        instead: what to do with another judge's file.

    Returns:
        The rows as they are stored.

    Raises:
        UserError: if they are another judge's.
    """  # ruff: ignore[docstring-extraneous-exception]
    if not path.is_file():
        return {}
    import pyarrow.parquet as pq

    rows: list[Any] = read_table(path).to_dict("records")
    theirs = json.loads((pq.read_schema(path).metadata or {}).get(KEY.encode(), b"{}"))
    theirs = {**(older or {}), **theirs}
    require_same_settings(path, "judged", theirs, identity, both=True, instead=instead)
    return {
        row["id"]: row
        for row in rows
        if digests.get(row["id"]) == row["digest"] and not row["detail"].startswith(FAILED)
    }


def write_rows(
    path: Path,
    rows: Sequence[Mapping[str, str]],
    columns: Sequence[str],
    identity: Mapping[str, Any],
) -> None:
    """Write all rows of a file of verdicts, with the judge's identity.

    Args:
        path: where to.
        rows: one for each answer.
        columns: their names.
        identity: of the judge, as JSON.
    """
    import pandas as pd

    table = pd.DataFrame(list(rows), columns=list(columns))
    write_table(path, table, {KEY: json.dumps(identity)})
