"""Notes on rows that do not compare, in tables and in the report."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from evaluated import evaluate

from ntkprobe.evaluation import Evaluation
from ntkprobe.report.evaluated import tables_of
from ntkprobe.storage import write_table
from ntkprobe.tables import make_table
from ntkprobe.tables.comparability import comparability

SAME: dict[str, Any] = {
    "benchmarks": {"set": {"digest": "1"}},
    "answers": {"max_new_tokens": 16, "temperature": 0.0, "resolved_template": "chat#1"},
}


def made(place: Path, name: str, **other: Any) -> str:
    about = {key: {**value, **other.get(key, {})} for key, value in SAME.items()}
    folder = evaluate(place / name, {"set": {"kinds": "sx", "strict": "cr"}}, label=name, **about)
    path = folder / "verdicts/set/strict.parquet"
    judge = {"asks": "refusal", "judge": "llm", "model": "M", **other.get("judge", {})}
    write_table(path, pd.read_parquet(path), {"ntkprobe.judge": json.dumps(judge)})
    return str(folder)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"benchmarks": {"set": {"digest": "2"}}}, "Prompts of set are not the same in a, b"),
        ({"answers": {"max_new_tokens": 256}}, "Answers differ in max_new_tokens (a 16, b 256)"),
        ({"answers": {"resolved_template": "raw"}}, "Templates differ (a chat#1, b raw)"),
        ({"judge": {"model": "N"}}, "The judge strict is not the same: model differs (a M, b N)"),
        ({"judge": {"max_tokens": "9"}}, "max_tokens differs (a default, b 9)"),
    ],
)
def test_what_differs_between_rows_besides_the_model_is_told(
    other: dict[str, Any], words: str, tmp_path: Path
) -> None:
    places = [made(tmp_path, "a"), made(tmp_path, "b", **other)]
    runs = {name: Evaluation(place) for name, place in zip("ab", places, strict=True)}
    (note,) = comparability(runs)
    assert words in note
    for name in ("1", "5", "two-sided"):
        assert note in make_table(places, name).notes
    assert all(note in table["notes"] for table in tables_of(runs))  # of the report
    assert comparability({"a": runs["a"], "c": Evaluation(made(tmp_path, "c"))}) == ()
