"""Answers as they are read, and files of verdicts about them: which verdicts still hold."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..storage import write_table
from .verdicts import FAILED, Item

KEY = "ntkprobe.judge"
"""Under this name a file's Parquet metadata says whose verdicts it holds, as JSON."""


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
    answers = pd.concat([pd.read_parquet(s, columns=["id", "answer"]) for s in shards])
    texts = dict(zip(answers["id"], answers["answer"], strict=True))
    asked = pd.read_parquet(prompts, columns=["id", "prompt"])
    return [
        Item(name, prompt, texts[name])
        for name, prompt in zip(asked["id"], asked["prompt"], strict=True)
        if name in texts
    ]


def digest(*texts: str) -> str:
    """Return what tells answers from others under the same id."""
    joined = "\0".join(texts)
    return sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def valid_rows(
    path: Path, digests: Mapping[str, str], identity: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """Return the rows on disk that still hold, by id: the same answer, and not failed.

    Args:
        path: of a file that `write_rows` wrote, or of none.
        digests: of today's answers, by id.
        identity: whose rows they must be.

    Returns:
        The rows as they are stored.

    Raises:
        UserError: if they are another judge's.
    """
    if not path.is_file():
        return {}
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    theirs = json.loads((table.schema.metadata or {}).get(KEY.encode(), b"{}"))
    if theirs != identity:
        raise UserError(
            f"{path} holds verdicts of {theirs}, not of {identity}: move it away, or give this "
            "judge another label"
        )
    return {
        row["id"]: row
        for row in table.to_pylist()
        if digests.get(row["id"]) == row["digest"] and not row["detail"].startswith(FAILED)
    }


def write_rows(
    path: Path,
    rows: Sequence[Mapping[str, str]],
    columns: Sequence[str],
    identity: Mapping[str, Any],
) -> None:
    """Write all rows of a file of verdicts, and whose they are.

    Args:
        path: where to.
        rows: one for each answer.
        columns: their names.
        identity: whose they are, as JSON can say it.
    """
    import pandas as pd

    table = pd.DataFrame(list(rows), columns=list(columns))
    write_table(path, table, {KEY: json.dumps(identity)})
