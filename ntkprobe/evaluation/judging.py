"""Judge the answers in a folder that have no verdict yet.

A file of verdicts, `E/verdicts/BENCHMARK/JUDGE.parquet`, is rewritten after every chunk of answers,
so that a stopped run loses at most one chunk. The next run judges answers without a verdict,
answers that have changed since, and those whose requests failed.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .verdict_files import digest, read_items, valid_rows, write_rows
from .verdicts import ENDLESS, Item, Judge, Verdict

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "verdict", "detail", "digest")


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
    identity = {"asks": judge.asks, **getattr(judge, "identity", {})}
    digests = {item.id: _digest(item) for item in items}
    rows = valid_rows(path, digests, identity)
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


def _digest(item: Item) -> str:
    """Return a digest of an answer as it is judged; unfinished reasoning has one of its own."""
    none = item.undetermined
    endless = none is not None and none.detail == ENDLESS
    return digest(ENDLESS, item.answer) if endless else digest(item.shown.answer)


def _verdicts(judge: Judge, items: Sequence[Item]) -> list[Verdict]:
    """Return a verdict for each item; items whose verdict is known are not shown to the judge."""
    given = {item.id: item.undetermined for item in items}
    asked = [item for item in items if given[item.id] is None]
    said = zip(asked, judge.judge([item.shown for item in asked]), strict=True)
    given |= {item.id: verdict for item, verdict in said}
    return [verdict for item in items if (verdict := given[item.id]) is not None]
