"""What `replicate` plans, estimates and refuses before it begins."""

import json
import shutil
import time
from dataclasses import replace

import gguf
import pytest
from gguf_files import small_llama, write_gguf
from replication_calls import MODEL, words

from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.replication.hypotheses import HYPOTHESES
from ntkprobe.replication.plan import Stage, chosen, needed, stages
from ntkprobe.replication.settings import ReplicationSettings
from ntkprobe.replication.workspace import Workspace
from ntkprobe.storage import write_json

# Stages


def test_a_stage_is_chosen_by_what_it_does_its_run_or_its_name():
    everything = stages([0, 1])
    assert {s.run for s in chosen(everything, "stl")} == {"stl"}
    assert [s.name for s in chosen(everything, "train-dcr-1")] == ["train dcr-1"]
    assert chosen(everything, None) == everything
    with pytest.raises(UserError, match="no stage 'nothing'"):
        chosen(everything, "nothing")
    names = [stage.name for stage in everything]
    assert len(set(names)) == len(names)
    assert names.index("evaluate control-stl-1") < names.index("train stl-aug-0")


def test_all_that_verdicts_rest_on_comes_before_what_only_figures_show():
    everything = stages([0, 1])
    last = max(everything.index(s) for seed in (0, 1) for h in HYPOTHESES for s in needed(h, seed))
    shown = ("activations", "measure")
    assert last < min(everything.index(s) for s in everything if s.what in shown)


def test_a_hypothesis_is_judged_only_when_all_it_rests_on_is_done():
    everything = set(stages([0]))
    for name in HYPOTHESES:
        assert needed(name, 0) and set(needed(name, 0)) <= everything


# Seconds and memory


def test_seconds_and_memory_of_a_stage_include_those_before_it_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("ntkprobe.replication.workspace.SECONDS_BETWEEN", 0.02)
    workspace = Workspace(ReplicationSettings(model=MODEL, output_dir=tmp_path), {})
    unfinished, stage = tmp_path / "done" / ".start-base.json", Stage("start", "base")
    with workspace.timed(stage):
        deadline = time.monotonic() + 10
        while not unfinished.is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        left_by_a_kill = json.loads(unfinished.read_text())
    assert left_by_a_kill["seconds"] >= 0 and not unfinished.exists()
    before = {"seconds": 100.0, "processor_seconds": 70.0, "peak_gib": 1000.0}
    unfinished.write_text(json.dumps(before))
    with workspace.timed(stage):
        time.sleep(0.5)  # takes no processor
    found = json.loads((tmp_path / "done" / "start-base.json").read_text())
    assert 100.4 <= found["seconds"] < 160 and found["peak_gib"] >= 1000
    assert 70 <= found["processor_seconds"] < found["seconds"] - 30
    uncounted = {"seconds": 100.0, "peak_gib": None}  # as an earlier version wrote it
    unfinished.write_text(json.dumps(uncounted))
    with workspace.timed(stage):
        pass
    found = json.loads((tmp_path / "done" / "start-base.json").read_text())
    assert found["processor_seconds"] is None and found["seconds"] >= 100


def test_an_estimate_is_corrected_by_the_stages_of_its_kind_of_every_seed(tmp_path, monkeypatch):
    from ntkprobe.replication import estimate

    monkeypatch.setattr(estimate, "multiplications_per_second", lambda: 1e9)
    workspace = Workspace(ReplicationSettings(model=MODEL, output_dir=tmp_path, seeds=(1,)), {})
    asked = [Stage("evaluate", "stl", 1), Stage("train", "stl", 1)]

    def spans():
        lines = estimate.lines(workspace, asked)
        return [line.partition("about ")[2] for line in lines[: len(asked)]]

    def done(run, hours, what):
        stage = Stage(what, run, 0)
        write_json(tmp_path / "done" / f"{stage.file}.json", {"seconds": 3600 * hours})

    (tmp_path / "replication.json").write_text('{"seeds": [0]}')
    assert estimate.work(workspace, asked[0], estimate.shape_of(MODEL)) > 0
    before = spans()
    for run, hours in (("stl", 7), ("dcr-stl", 7), ("control-stl", 1000)):  # one was paused
        done(run, hours, "evaluate")
    evaluated, trained = spans()
    assert evaluated == "7.0 h" != before[0] and trained != before[1]  # what is not known: by all
    done("stl", 3, "train")
    assert spans() == ["7.0 h", "3.0 h"]


# What is refused


def test_a_report_before_a_learning_rate_is_chosen_says_what_to_run(published, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(words(published, out, "--only", "prepare")) == 0
    assert main(words(published, out, "--only", "report")) == 2
    assert "run --only choose" in capsys.readouterr().err


def test_too_little_disk_or_memory_is_said_before_anything_is_written(
    published, tmp_path, monkeypatch, capsys
):
    from ntkprobe.replication import estimate

    out = tmp_path / "out"
    usage = estimate.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: usage)
    assert main(words(published, out)) == 2
    assert "too little disk" in capsys.readouterr().err and not out.exists()
    monkeypatch.undo()
    monkeypatch.setattr(estimate, "memory", lambda *_: 1e18)
    assert main(words(published, out)) == 2
    assert "too little memory" in capsys.readouterr().err and not out.exists()


def test_a_model_without_a_template_is_refused_before_anything_is_written(
    published, tmp_path, capsys
):
    bare = shutil.copytree(MODEL, tmp_path / "bare")
    for file in bare.glob("*.jinja"):
        file.unlink()
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    for more in ((), ("--dry-run",)):
        assert main([*words(published, tmp_path / "out", *more), "--model", str(bare)]) == 2
        assert f"{bare} has no chat template" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_gguf_that_transformers_cannot_load_is_refused_before_anything_is_written(
    published, tmp_path, capsys
):
    file = write_gguf(tmp_path / "model.gguf", small_llama(), architecture="hyperloop")
    for more in ((), ("--dry-run",)):
        assert main([*words(published, tmp_path / "out", *more), "--model", str(file)]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and "'hyperloop'" in said[0] and "cannot load it" in said[0]
    assert not (tmp_path / "out").exists()


def test_a_gguf_that_can_be_loaded_is_planned_without_its_weights(
    published, tmp_path, capsys, monkeypatch
):
    file = write_gguf(tmp_path / "model.gguf", small_llama(), "Q4_1")
    monkeypatch.setattr(gguf, "dequantize", lambda *_: pytest.fail("weights were read"))
    assert main([*words(published, tmp_path / "out", "--dry-run"), "--model", str(file)]) == 0
    assert "train stl-0: about" in capsys.readouterr().out


def test_settings_that_make_no_sense_are_refused(tmp_path):
    settings = ReplicationSettings(model=MODEL, output_dir=tmp_path)
    for wrong in ({"seeds": ()}, {"seeds": (1, 1)}, {"seeds": (1000,)}, {"scale": "huge"}):
        with pytest.raises(UserError):
            replace(settings, **wrong)
    assert main(["replicate", "--model", MODEL, "--seeds", "a"]) == 2
