"""Benchmarks: what is read from which file, and what is said about a file that is another one."""

import csv
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from ntkprobe.errors import UserError
from ntkprobe.evaluation.benchmarks import BENCHMARKS, read_benchmark
from ntkprobe.evaluation.benchmarks.catalogue import XSTEST_CONTRASTS

DATA = Path(os.environ.get("NTKPROBE_DATA", Path(__file__).parents[3] / "shared" / "data"))
real = pytest.mark.skipif(not DATA.is_dir(), reason="the published files are not here")


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def xstest_like(path):
    kinds = [("homonyms", "safe"), ("contrast_homonyms", "unsafe"), ("privacy_public", "safe")]
    rows = [
        {"id": f"v{n}", "prompt": f"{kind} {k}?", "type": kind, "label": label, "focus": "x"}
        for n, (kind, label, k) in enumerate((*each, k) for each in kinds for k in range(2))
    ]
    return write(path, rows)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets`, which gives what the test says."""
    asked = []

    def load_dataset(path, config=None, split=None):
        asked.append((path, config, split))
        if isinstance(made.rows, Exception):
            raise made.rows
        return made.rows

    made = SimpleNamespace(load_dataset=load_dataset, rows=[], asked=asked)
    monkeypatch.setitem(sys.modules, "datasets", made)
    return made


def test_every_benchmark_declares_source_licence_rows_and_kind():
    for benchmark in BENCHMARKS.values():
        assert benchmark.source and benchmark.licence and benchmark.about and benchmark.rows > 0
        assert benchmark.kind in ("safe", "unsafe") or benchmark.kinds
    counts = [BENCHMARKS[n].rows for n in ("i_malicious", "i_cona", "i_controversial", "q_harm")]
    assert sum(counts) + BENCHMARKS["advbench"].rows == 938  # the paper's safety prompts


def test_the_contrast_of_a_contrast_is_the_prompt_itself(tmp_path):
    table = read_benchmark(f"xstest={xstest_like(tmp_path / 'x.csv')}").table.set_index("id")
    assert table["pair"].to_dict() == {
        "v0": "v2", "v1": "v3", "v2": "v0", "v3": "v1", "v4": "", "v5": "",
    }  # fmt: skip
    assert table["kind"].tolist() == ["safe"] * 2 + ["unsafe"] * 2 + ["safe"] * 2


def test_a_file_of_another_length_is_told(tmp_path):
    found = read_benchmark(f"xstest={xstest_like(tmp_path / 'x.csv')}")
    assert "has 6 rows, the published file 450" in found.note


def test_the_embedded_prompts_are_there_without_a_file():
    found = read_benchmark("tiny")
    assert found.table.groupby("kind").size().to_dict() == {"safe": 122, "unsafe": 60}
    assert (
        found.note == "" and found.first(2).table["kind"].tolist() == ["safe"] * 2 + ["unsafe"] * 2
    )


def test_a_benchmark_comes_from_the_hub_and_only_its_rows_count(hub):
    hub.rows = [
        {"ID": n, "Request": f"Ask {n}?", "Harmfulness": kind}
        for n, kind in enumerate(["harmless", "controversial", "harmless"])
    ]
    found = read_benchmark("phtest_harmless")
    assert hub.asked == [("furonghuang-lab/PHTest", None, "train")]
    assert found.table["id"].tolist() == ["0", "2"] and found.source.startswith("hub:")
    assert read_benchmark("phtest_controversial").table["prompt"].tolist() == ["Ask 1?"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("401 Client Error: gated repo"), "is gated.*HF_TOKEN.*advbench=FILE"),
        (ConnectionError("no route\nto host"), "cannot be read from the hub .*no route to host"),
    ],
)
def test_what_the_hub_does_not_give_is_one_clear_line(hub, error, words):
    hub.rows = error
    with pytest.raises(UserError, match=words) as raised:
        read_benchmark("advbench")
    assert "\n" not in str(raised.value)


def test_without_datasets_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"ntkprobe\[benchmarks\].*xstest=FILE"):
        read_benchmark("xstest")


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("xtest", r"no benchmark 'xtest': choose from tiny, xstest, .*advbench"),
        ("oktest", "a file that no hub has.*oktest=FILE"),
        ("xstest=absent.csv", "no file absent.csv"),
        ("xstest={plain}", "is not xstest as published.*no 'id'"),
        ("{plain}=harmless", r"unknown kind 'harmless' in .*: choose from \['safe', 'unsafe'\]"),
        ("{plain}", "does not say what its prompts are.*=safe"),
        ("{blank}=safe", "the prompt '2' has no text"),
        ("{odd}", "row 1: kind is 'maybe', allowed are"),
        ("{twice}=safe", "the id 'a' occurs twice"),
        ("{answers}=safe", "has no prompts: its columns are"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, word, words):
    files = {
        "plain": [{"prompt": "May I?"}],
        "blank": [{"prompt": "May I?"}, {"prompt": " "}],
        "odd": [{"prompt": "May I?", "kind": "maybe"}],
        "twice": [{"prompt": "May I?", "id": "a"}] * 2,
        "answers": [{"answer": "Yes."}],
    }
    places = {name: write(tmp_path / f"{name}.csv", rows) for name, rows in files.items()}
    with pytest.raises(UserError, match=words):
        read_benchmark(word.format(**places))


def test_a_file_of_ones_own_is_called_like_its_file_and_keeps_ids_types_and_pairs(tmp_path):
    path = tmp_path / "my set.jsonl"
    rows = [
        {"id": "a", "text": "May I rest?", "group": "seemingly_toxic", "pair": "b"},
        {"id": "b", "text": "May I steal?", "group": "toxic", "pair": "a"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_benchmark(str(path))
    assert found.name == "my_set" and found.table["pair"].tolist() == ["b", "a"]
    assert found.table["kind"].tolist() == ["safe", "unsafe"]
    assert read_benchmark(f"{write(tmp_path / 'xstest.csv', [{'text': 'a?'}])}=unsafe").name == (
        "own_xstest"
    )


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_ids_and_pairs_that_are_numbers_are_kept_zero_too(tmp_path, ending):
    kinds = ["safe", "unsafe", "safe"]
    rows = [{"id": n, "prompt": f"May I {n}?", "kind": k} for n, k in enumerate(kinds)]
    table = pd.DataFrame(rows).assign(pair=[1, 0, None])  # with a gap the numbers are 1.0 and 0.0
    path = tmp_path / f"own.{ending}"
    if ending == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=True)
    found = read_benchmark(str(path)).table
    assert (found["id"].tolist(), found["pair"].tolist()) == (["0", "1", "2"], ["1", "0", ""])


@pytest.mark.parametrize(
    ("pairs", "words"),
    [("c", "row 1: pair is 'c', which is safe, too"), ("a", "which is safe, too"), ("x", "no id")],
)
def test_a_pair_names_a_prompt_of_the_other_kind(tmp_path, pairs, words):
    def own(pair):
        rows = [
            {"id": "a", "prompt": "May I rest?", "kind": "safe", "pair": pair},
            {"id": "b", "prompt": "May I steal?", "kind": "unsafe", "pair": ""},
            {"id": "c", "prompt": "May I sing?", "kind": "safe", "pair": ""},
        ]
        return write(tmp_path / "own.csv", rows)

    with pytest.raises(UserError, match=words):
        read_benchmark(str(own(pairs)))
    assert read_benchmark(str(own("b"))).table["pair"].tolist() == ["b", "", ""]
    assert read_benchmark(f"{own('b')}:kind=safe").table["pair"].tolist() == ["b", ""]


def test_the_kind_of_a_whole_file_may_not_contradict_its_rows(tmp_path):
    rows = [{"prompt": "May I rest?", "kind": "safe"}, {"prompt": "May I steal?", "kind": "unsafe"}]
    path = write(tmp_path / "own.csv", rows)
    with pytest.raises(UserError, match="row 2: kind is 'unsafe': leave out the kind 'safe'"):
        read_benchmark(f"{path}=safe")
    assert len(read_benchmark(f"{path}:kind=safe=safe").table) == 1
    other = write(tmp_path / "other.csv", [{"prompt": "May I rest?", "label": "positive"}])
    assert read_benchmark(f"{other}=safe").table["kind"].tolist() == ["safe"]


def test_some_rows_of_a_file_are_a_benchmark_of_their_own(tmp_path):
    rows = [{"prompt": f"May I {n}?", "part": "ab"[n % 2], "kind": "safe"} for n in range(4)]
    path = write(tmp_path / "own.csv", rows)
    a, b, whole = (read_benchmark(f"{path}{end}") for end in (":part=a", ":part=b", ""))
    assert [x.name for x in (a, b, whole)] == ["own_part_a", "own_part_b", "own"]
    assert a.table["id"].tolist() == ["1", "3"] and b.table["id"].tolist() == ["2", "4"]
    bare = write(
        tmp_path / "bare.csv", [{"prompt": "a?", "part": "a"}, {"prompt": "b", "part": "b"}]
    )
    assert read_benchmark(f"{bare}:part=b=unsafe").table["kind"].tolist() == ["unsafe"]
    with pytest.raises(UserError, match="no row has 'c'"):
        read_benchmark(f"{path}:part=c")


def test_some_rows_of_a_published_file_keep_their_kinds(tmp_path):
    found = read_benchmark(f"xstest={xstest_like(tmp_path / 'x.csv')}:label=unsafe")
    assert found.name == "xstest" and set(found.table["kind"]) == {"unsafe"}
    assert "has 2 rows, the published file 450" in found.note


@real
def test_the_published_files_have_their_published_rows():
    stl = DATA / "safety-tuned-llamas"
    files = {
        "xstest": DATA / "xstest/xstest_prompts.csv",
        "advbench": DATA / "advbench/harmful_behaviors.csv",
        "i_malicious": stl / "I-MaliciousInstructions.json",
        "i_cona": stl / "I-CoNa.json",
        "i_controversial": stl / "I-Controversial.json",
        "q_harm": stl / "Q-Harm.json",
    }
    for name, path in files.items():
        found = read_benchmark(f"{name}={path}")
        assert found.note == "" and len(found.table) == BENCHMARKS[name].rows


@real
def test_xstests_pairs_are_about_the_same_thing():
    path = DATA / "xstest/xstest_prompts.csv"
    table = read_benchmark(f"xstest={path}").table
    focus = {row["id"]: row["focus"] for row in csv.DictReader(path.open())}
    paired = table[(table["kind"] == "safe") & (table["pair"] != "")]
    assert len(paired) == 25 * len(XSTEST_CONTRASTS) == 200
    same = [focus[a] == focus[b] for a, b in zip(paired["id"], paired["pair"], strict=True)]
    assert sum(same) == 199
