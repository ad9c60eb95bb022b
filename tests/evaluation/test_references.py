"""Win rates against references of any label, and against two that have the same one."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from evaluated import evaluate
from fake_server import fake_server

from ntkprobe.cli import main
from ntkprobe.evaluation import Evaluation
from ntkprobe.evaluation.preferences import file_stem, label_of_stem
from ntkprobe.storage import write_table

LABELS = ["org/model", "../../../outside", ".hidden", "50 % DCR", "a\\b", "..", "stl"]


def by_length(messages: list[dict[str, str]], _: int) -> str:
    fields = json.loads(messages[-1]["content"])
    return "FIRST" if len(fields["first"]) > len(fields["second"]) else "SECOND"


def written(folder: Path, answers: list[str], **about: Any) -> Path:
    return evaluate(folder, {"set": {"kinds": "ss", "answers": answers}}, **about)


def won(ours: Path, theirs: Path) -> int:
    with fake_server(by_length) as fake:
        words = ["win-rate", str(ours), "--reference", str(theirs), "--base-url", fake.base_url]
        return main([*words, "--model", "m"])


@pytest.mark.parametrize("label", LABELS)
def test_a_reference_of_any_label_has_its_win_rate_and_a_file_in_the_folder(
    label: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = written(tmp_path / "deep/er/ours", ["longer", "longest"], label="dcr")
    theirs = written(tmp_path / "theirs", ["c", "d"], label=label)
    assert won(ours, theirs) == 0
    assert f"set: dcr wins 100.0% against {label} [" in capsys.readouterr().out
    assert Evaluation(ours).win_rates()["reference"].tolist() == [label]
    (made,) = (p for p in tmp_path.rglob("*.parquet") if not {"prompts", "answers"} & {*p.parts})
    assert made.parent == ours / "preferences/set" and not made.name.startswith(".")
    assert label_of_stem(file_stem(label)) == label


def test_a_second_reference_of_the_same_label_does_not_replace_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = written(tmp_path / "ours", ["longer", "longest"], label="dcr")
    seeds = {
        seed: written(
            tmp_path / seed,
            [answer, answer],
            label="stl",
            model={"base": {"name": "M", "identity": seed}},
        )
        for seed, answer in (("0", "a"), ("1", "as long as possible"))
    }
    assert won(ours, seeds["0"]) == 0
    kept = Evaluation(ours).win_rates()
    assert won(ours, seeds["1"]) == 2
    assert "stl.parquet was judged with reference" in capsys.readouterr().err
    pd.testing.assert_frame_equal(Evaluation(ours).win_rates(), kept)
    path = ours / "preferences/set/stl.parquet"
    stored = json.loads(_metadata(path))
    del stored["reference"]  # as files were before
    write_table(path, pd.read_parquet(path), {"ntkprobe.judge": json.dumps(stored)})
    assert won(ours, seeds["0"]) == 0


def test_equal_answers_say_nothing_of_how_sure_the_annotator_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = written(tmp_path / "ours", ["the same", "another"], label="dcr")
    for name, answers, said in (
        ("near", ["the same", "other"], "0% alike in both orders"),
        ("alike", ["the same", "another"], "all of equal answers"),
    ):
        theirs = written(tmp_path / name, answers, label=name)
        with fake_server(lambda *_: "FIRST") as fake:  # by position
            words = ["win-rate", str(ours), "--reference", str(theirs), "--model", "m"]
            assert main([*words, "--base-url", fake.base_url]) == 0
        assert f"wins 50.0% against {name}" in (told := capsys.readouterr().out) and said in told


def _metadata(path: Path) -> str:
    import pyarrow.parquet as pq

    return (pq.read_schema(path).metadata or {})[b"ntkprobe.judge"].decode()
