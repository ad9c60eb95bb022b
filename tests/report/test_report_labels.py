"""What the page says of its numbers: prompts trained on, what steps count, which are drawn."""

import json
import re
from importlib.resources import files

import pandas as pd
import pytest
from evaluated import evaluate
from measured_runs import write_run

from ntkprobe.report.cautions import cautions
from ntkprobe.report.contents import contents_of
from ntkprobe.report.folders import find_sources
from ntkprobe.storage import write_json
from ntkprobe.trajectory import Trajectory


def record(folder, **settings):
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, **settings}))


def test_all_prompts_trained_on_are_counted_and_not_only_those_of_measured_pairs(tmp_path):
    folder = write_run(tmp_path / "stl-ntk")
    run = {"stl": Trajectory(folder)}
    prompts = run["stl"].prompts["text"]
    pairs = pd.read_parquet(folder / "updated.parquet")
    pairs.assign(text=prompts.iloc[:4]).to_parquet(folder / "updated.parquet")
    said = [line for line in cautions(run) if "trained on" in line]
    assert said == [
        "stl: 4 measured prompts are among the training pairs whose influence was measured; more "
        "may have been trained on."
    ]
    record(folder, trained_on={"prompts": 24, "of": 36, "groups": {}, "sources": {}})
    assert "stl: 24 of 36 measured prompts were trained on." in cautions(run)
    record(folder, trained_on={"prompts": 0, "of": 36, "groups": {}, "sources": {}})
    assert not [line for line in cautions(run) if "trained on" in line]


def test_other_phrases_than_the_papers_are_named(tmp_path):
    folder = write_run(tmp_path / "stl-ntk")

    def said():
        (one,) = contents_of(find_sources([tmp_path]))["sets"]
        return [line for line in one["cautions"] if "phrases" in line]

    assert not said()
    for file in (folder / "refusal").iterdir():
        pd.read_parquet(file).assign(phrase_set="german").to_parquet(file)
    assert said() == [
        "stl: P(refuse) is of the phrases german (prefix_free), not the paper's sum of its 31."
    ]


@pytest.mark.parametrize(("settings", "unit"), [({}, "step"), ({"steps_are": "epochs"}, "epoch")])
def test_a_page_knows_what_steps_count(settings, unit, tmp_path):
    record(write_run(tmp_path / "stl-ntk"), **settings)
    (one,) = contents_of(find_sources([tmp_path]))["sets"]
    assert one["unit"] == unit


def test_epochs_and_steps_have_no_common_axis(tmp_path):
    record(write_run(tmp_path / "a-ntk"), steps_are="epochs")
    write_run(tmp_path / "b-ntk")
    assert [one["unit"] for one in contents_of(find_sources([tmp_path]))["sets"]] == [
        "epoch",
        "step",
    ]


def test_the_pages_runs_differ_in_colour_in_light_and_in_dark():
    script = (files("ntkprobe.report") / "scripts" / "charts.js").read_text("utf-8")
    block = script.split("RUN_COLOURS = {")[1].split("};")[0]
    colours = [re.findall(r"#[0-9a-f]{6}", line) for line in block.strip().splitlines()]
    assert [len(set(line)) for line in colours] == [8, 8]


def test_what_is_drawn_as_compliance_and_defence_is_no_ability(tmp_path):
    evaluate(tmp_path, {"own": {"kinds": "ssx", "xstest_prefixes": "rcr"}}, label="STL")
    tasks = {
        "mmlu": [{"metric": "acc", "value": 0.6, "stderr": 0.01, "n": 100}],
        "words": [{"metric": "word_perplexity", "value": 12.0, "stderr": None, "n": 100}],
    }
    write_json(tmp_path / "abilities.json", {"tasks": tasks})
    (table,) = [
        one
        for one in contents_of(find_sources([tmp_path]))["evaluations"]["tables"]
        if one["name"] == "1"
    ]
    assert set(table["pictured"]) == set(table["numbers"]["column"]) - {"MMLU", "words"}
    assert table["pictured"]
