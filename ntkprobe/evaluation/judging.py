"""Let a judge look at the answers in a folder, and at none of them twice.

A file of verdicts, `E/verdicts/BENCHMARK/JUDGE.parquet`, is written anew after every few answers:
whoever stops a run, or loses the server, has every verdict that was given. The next run asks for
what is missing: answers without a verdict, answers that have changed since, and failed requests.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..storage import write_table
from .verdicts import FAILED, Item, Judge, Verdict

if TYPE_CHECKING:
    import pandas as pd

_KEY = "ntkprobe.judge"


def judge_answers(
    folder: Path, benchmark: str, judge: Judge, label: str, *, chunk: int = 64
) -> "pd.DataFrame":
    """Judge the answers of one benchmark that have no verdict yet.

    Args:
        folder: the evaluation, which holds `answers/BENCHMARK`.
        benchmark: its name.
        judge: the judge.
        label: its name in files and tables.
        chunk: how many answers are judged between two writings.

    Returns:
        All verdicts of this judge: `id`, `verdict`, `detail`, `digest` (of the answer judged).
    """  # ruff: ignore[docstring-missing-exception]
    from tqdm.auto import tqdm

    items = read_items(folder, benchmark)
    path = folder / "verdicts" / benchmark / f"{label}.parquet"
    identity = dict(getattr(judge, "identity", {}))
    rows = _kept(path, items, identity)
    missing = [item for item in items if item.id not in rows]
    with tqdm(total=len(missing), desc=f"{benchmark}, {label}", leave=False) as progress:
        for start in range(0, len(missing), chunk):
            asked = missing[start : start + chunk]
            for item, verdict in zip(asked, judge.judge(asked), strict=True):
                rows[item.id] = _row(item, verdict)
            _write(path, [rows[item.id] for item in items if item.id in rows], identity)
            progress.update(len(asked))
    return _frame([rows[item.id] for item in items])


def read_items(folder: Path, benchmark: str) -> list[Item]:
    """Return the answered prompts of a benchmark, in the order of its prompts.

    Raises:
        UserError: if there are none.
    """
    import pandas as pd

    shards = sorted((folder / "answers" / benchmark).glob("batch-*.parquet"))
    prompts = folder / "prompts" / f"{benchmark}.parquet"
    if not shards or not prompts.is_file():
        raise UserError(
            f"{folder} holds no answers to {benchmark!r}: run `ntkprobe evaluate` first"
        )
    answers = pd.concat([pd.read_parquet(shard) for shard in shards])
    texts = dict(zip(answers["id"], answers["answer"], strict=True))
    asked = pd.read_parquet(prompts)
    return [
        Item(name, prompt, texts[name])
        for name, prompt in zip(asked["id"], asked["prompt"], strict=True)
        if name in texts
    ]


def digest(answer: str) -> str:
    """Return what tells an answer from another under the same id."""
    return sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _kept(path: Path, items: Sequence[Item], identity: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the verdicts on disk that still hold, by id.

    Raises:
        UserError: if they are another judge's.
    """
    if not path.is_file():
        return {}
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    theirs = json.loads((table.schema.metadata or {}).get(_KEY.encode(), b"{}"))
    if theirs != identity:
        raise UserError(
            f"{path} holds verdicts of {theirs}, not of {identity}: move it away, or give this "
            "judge another label"
        )
    now = {item.id: digest(item.answer) for item in items}
    return {
        row["id"]: row
        for row in table.to_pylist()
        if now.get(row["id"]) == row["digest"] and not row["detail"].startswith(FAILED)
    }


def _row(item: Item, verdict: Verdict) -> dict[str, str]:
    """Return a verdict as it is stored."""
    kept = {"id": verdict.id, "verdict": verdict.verdict, "detail": verdict.detail}
    return {**kept, "digest": digest(item.answer)}


def _write(path: Path, rows: Sequence[dict[str, str]], identity: dict[str, Any]) -> None:
    """Write all verdicts, and whose they are."""
    write_table(path, _frame(rows), {_KEY: json.dumps(identity)})


def _frame(rows: Sequence[dict[str, str]]) -> "pd.DataFrame":
    """Return verdicts as a table."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=["id", "verdict", "detail", "digest"])
