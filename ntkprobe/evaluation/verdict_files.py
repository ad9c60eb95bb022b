"""Answers of an evaluation, and files of verdicts with the answers that they are about."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..storage import write_table
from .verdicts import FAILED, Item

KEY = "ntkprobe.judge"
"""The key of a file's Parquet metadata under which the judge's identity is stored as JSON."""


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
    """Return 16 hexadecimal digits of the SHA-256 of texts."""
    joined = "\0".join(texts)
    return sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def valid_rows(
    path: Path, digests: Mapping[str, str], identity: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """Return the valid rows of a file, by id: those of unchanged answers that did not fail.

    Args:
        path: of a file that `write_rows` wrote; it need not exist.
        digests: of the present answers, by id.
        identity: of the judge, which the file must have.

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
