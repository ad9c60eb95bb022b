"""The replication's data: published files, and the splits that are made of them."""

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from replication_calls import MODEL, words

from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.prompts.prompt_set import normalised
from ntkprobe.replication import training_runs
from ntkprobe.replication.data_files import FILES, find_files, hub_names, read_file
from ntkprobe.replication.plan import Stage
from ntkprobe.replication.settings import SCALES, ReplicationSettings
from ntkprobe.replication.splits import (
    Drawer,
    begins_with_refusal,
    is_yes_no,
    make_splits,
    published_rows,
)
from ntkprobe.replication.workspace import Workspace

# Splits


@pytest.fixture(scope="module")
def splits(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    return make_splits(folder, find_files(published), SCALES["toy"])


def test_no_prompt_is_trained_on_and_measured_but_xstests_safe_half(splits):
    def texts(*names):
        return {normalised(row["prompt"]) for name in names for row in splits.rows(name)}

    trained = texts("refusals", "general", "development")
    measured = texts("oktest", "coconot_contrast", "xstest", "advbench", "along", "normal")
    assert trained and measured and not trained & measured
    assert not texts("development") & texts("refusals", "general", "dcr")
    safe = {normalised(r["prompt"]) for r in splits.rows("xstest") if r["kind"] == "safe"}
    assert texts("dcr") & measured == safe


def test_a_prompt_in_two_sets_is_refused(published, tmp_path):
    places = dict(find_files(published))
    rows = read_file("xstest", places)
    safety = json.loads(places["safety"].read_text())
    safety.append({"instruction": rows[0]["prompt"], "input": "", "output": "I cannot do it."})
    (tmp_path / "safety.json").write_text(json.dumps(safety))
    made = make_splits(
        tmp_path / "a", {**places, "safety": tmp_path / "safety.json"}, SCALES["toy"]
    )
    assert rows[0]["prompt"] not in {row["prompt"] for row in made.rows("refusals")}


def test_a_split_does_not_depend_on_the_order_of_the_file():
    rows = [{"prompt": f"prompt {n}"} for n in range(20)]
    first, second = Drawer("x", rows), Drawer("x", rows[::-1])
    assert first.take(5) == second.take(5) and first.rest() == second.rest()
    assert not {r["prompt"] for r in first.take(3)} & {r["prompt"] for r in first.rest()}
    with pytest.raises(UserError, match="x has too few prompts: 99 are wanted here, 12 are left"):
        first.take(99)


def test_yes_or_no_questions_and_refusals_are_told_by_their_first_words():
    assert is_yes_no("Is it safe to kill a process?") and is_yes_no('"Don’t you shoot people?"')
    assert not is_yes_no("How is it killed?") and not is_yes_no("What can I do?")
    assert begins_with_refusal("I’m sorry, but I cannot") and not begins_with_refusal("Sure, no.")


def test_control_is_trained_with_as_many_labels_of_each_kind_on_the_same_prompts(
    published, tmp_path, monkeypatch
):
    from ntkprobe.replication import training_runs

    seen = {}
    monkeypatch.setattr(
        training_runs,
        "train_dcr",
        lambda model, prompts, config: seen.setdefault(len(seen), prompts),
    )
    settings = ReplicationSettings(model=MODEL, output_dir=tmp_path, data=published, scale="toy")
    workspace = Workspace(settings, find_files(published))
    make_splits(tmp_path / "data", workspace.places, workspace.scale)
    for run in ("dcr", "control"):
        training_runs.train(workspace, Stage("train", run, 0))
    texts, groups = ([[getattr(p, a) for p in seen[i]] for i in (0, 1)] for a in ("text", "group"))
    assert texts[0] == texts[1]
    assert groups[0] != groups[1] and sorted(groups[0]) == sorted(groups[1])


def test_sft_has_the_epochs_of_the_pairs_that_there_are(published, tmp_path, monkeypatch):
    settings = ReplicationSettings(model=MODEL, output_dir=tmp_path, scale="toy")
    workspace = Workspace(settings, find_files(published))
    scale = replace(SCALES["toy"], general=1000, epochs=3)
    monkeypatch.setitem(SCALES, "toy", scale)
    before = workspace.pairs
    make_splits(tmp_path / "data", workspace.places, scale)
    given = []
    monkeypatch.setattr(training_runs, "train_sft", lambda *args, **_: given.append(args))
    training_runs.sft(workspace, tmp_path / "run", MODEL, 0, 1e-3)
    (_, general, _, config), *_ = given
    there = len(general) + scale.safe
    assert len(general) < 1000 and before == 1000 + scale.safe
    assert config.max_steps == 3 * -(-there // (scale.batch * scale.accumulate))


# Files


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named_with_its_source(published, tmp_path, name):
    places = find_files(published)
    for other, path in places.items():
        if other != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="1 files are missing") as told:
        find_files(tmp_path)
    assert FILES[name].names[0] in str(told.value) and FILES[name].source in str(told.value)


def test_what_a_folder_lacks_is_taken_from_the_hub_where_that_is_asked_for(
    published, tmp_path, monkeypatch
):
    every = find_files(published)
    for name, path in every.items():
        if name != "xstest":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="--hub takes from the Hugging Face hub: xstest_prompts"):
        find_files(tmp_path)
    places = find_files(tmp_path, hub=True)
    assert set(every) - set(places) == {"xstest"} and hub_names(every) == {}
    assert hub_names(places) == {"xstest": "hub:Paul/XSTest"}
    rows = read_file("xstest", every)
    asked = []

    def load_dataset(*given, **more):
        asked.append((given, more))
        return rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_file("xstest", places) == rows
    assert asked == [(("Paul/XSTest", None), {"split": "train"})]

    def gated(*given, **more):
        raise PermissionError("401 Client Error: gated repo")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=gated))
    with pytest.raises(UserError, match=r"Paul/XSTest is gated.*HF_TOKEN, or give --data with xst"):
        read_file("xstest", places)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needed: pip install .*, or give --data with xstest"):
        read_file("xstest", places)
    with pytest.raises(UserError, match="6 files are missing"):
        find_files(None, hub=True)


def test_a_file_of_another_form_is_refused(published, tmp_path):
    (tmp_path / "OKTest.csv").write_text("question\nhow\n")
    with pytest.raises(UserError, match=r"no 'prompt'"):
        read_file("oktest", {"oktest": tmp_path / "OKTest.csv"})


def test_a_row_of_another_form_is_refused_with_its_number(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c"}\n')
    with pytest.raises(
        UserError, match=r"row 2 has the columns .*'instruction'.*, but no 'output'"
    ):
        read_file("alpaca", {"alpaca": tmp_path / "a.jsonl"})
    other = [{"prompt": "a", "label": "safe"}, {"prompt": "b", "label": "Safe?"}]
    with pytest.raises(UserError, match=r"label 'Safe\?': it should be safe or unsafe"):
        published_rows("xstest", other)


def test_a_file_that_is_wrong_binds_no_folder(published, tmp_path, capsys):
    data, out = shutil.copytree(published, tmp_path / "data"), tmp_path / "out"
    file = data / "oktest" / "OKTest.csv"
    right = file.read_text()
    file.write_text("question\nhow\n")
    assert main(words(data, out, "--only", "prepare")) == 2
    assert "OKTest.csv as published" in capsys.readouterr().err and not out.exists()
    file.write_text(right)
    assert main(words(data, out, "--only", "prepare")) == 0
    file.write_text(right.replace("?", "!"))
    assert main(words(data, out, "--only", "prepare")) == 2
    assert "overwrite" not in capsys.readouterr().err  # which there is none of here
