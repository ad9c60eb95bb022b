"""A folder that has measurements: what is measured again, what stays, and what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny_runs import contents, events, finish, save_base, tiny_adapter, tiny_model
from watched_runs import PROMPTS, SETTINGS, identity_of, kernel_at, measure, with_kernel

from ntkprobe import Trajectory, UserError
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.storage import write_table
from ntkprobe.watcher import Choice, measure_run, parse_steps
from ntkprobe.watcher.folder import IDENTITY


def test_a_second_run_measures_nothing_and_writes_nothing(run, measured):
    before = contents(measured)
    outcome = measure(run, measured)
    assert (outcome.new, outcome.known, outcome.status) == ([], [0, 10, 20], 0)
    assert contents(measured) == before


def test_a_lost_table_alone_is_measured_again_and_is_the_same(run, measured):
    path = measured / "kernel" / "step-00000010.parquet"
    before = path.read_bytes()
    path.unlink()
    assert measure(run, measured).new == [10]
    assert path.read_bytes() == before


def test_a_torn_table_is_measured_again(run, measured):
    path = measured / "kernel" / "step-00000010.parquet"
    before = path.read_bytes()
    path.write_bytes(before[:100])
    assert measure(run, measured).new == [10] and path.read_bytes() == before


def test_a_checkpoint_written_anew_is_measured_anew_with_an_event(run, measured):
    tiny_adapter(tiny_model(), seed=99).save_pretrained(run / "checkpoint-20")
    finish(run / "checkpoint-20", 20, 20)
    before = kernel_at(measured, 20)
    assert measure(run, measured).new == [20]
    assert not np.allclose(kernel_at(measured, 20), before)
    *told, skipped = [(e["state"], e.get("step")) for e in events(measured)][-6:]
    states = ("ready", "measuring", "replaced", "compared", "done")
    assert told == [(state, 20) for state in states]
    assert skipped[0] == "skipped" and events(measured)[-1]["steps"] == [0, 10]


def test_a_checkpoint_whose_settings_alone_changed_is_measured_anew(run, measured):
    before, path = kernel_at(measured, 20), run / "checkpoint-20/adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 8 * config["lora_alpha"]}))
    assert measure(run, measured).new == [20]
    assert not np.allclose(kernel_at(measured, 20), before)


def test_what_was_measured_when_only_weights_counted_is_known(run, measured):
    record = json.loads((measured / "run.json").read_text())
    record["model"]["base_identity"] = record["model"]["base_identity"].partition("-")[0]
    (measured / "run.json").write_text(json.dumps(record))
    for step in (0, 10, 20):
        path, which = measured / f"kernel/step-{step:08}.parquet", identity_of(measured, step)
        assert len(which.partition("-")[0]) == 64 and "-" in which
        table = pd.read_parquet(path, partitioning=None)
        write_table(path, table, {IDENTITY: which.partition("-")[0]})
    assert measure(run, measured).known == [0, 10, 20]


def test_steps_that_only_an_earlier_run_had_are_named(run, measured, capsys):
    assert measure(run, measured).known == [0, 10, 20]
    assert "of which" not in capsys.readouterr().err
    (run / "checkpoint-10").rename(run / "checkpoint-15")
    finish(run / "checkpoint-15", 15, 20)
    tiny_adapter(tiny_model(), seed=99).save_pretrained(run / "checkpoint-20")
    finish(run / "checkpoint-20", 20, 20)
    assert measure(run, measured).new == [15, 20]
    said = capsys.readouterr().err
    assert f"has step 10, of which {run} has no checkpoint" in said and "--overwrite" in said
    assert not measure(run, measured).new and "of which" not in capsys.readouterr().err


def test_fixed_tokens_of_a_first_checkpoint_that_was_replaced_are_refused(source, run, tmp_path):
    settings = with_kernel(top_k_at="first")
    how = {"choice": Choice(steps=parse_steps("10,20")), "model": str(source / "base")}
    assert measure(run, tmp_path / "out", settings, **how).new == [10, 20]
    tiny_adapter(tiny_model(), seed=98).save_pretrained(run / "checkpoint-20")
    finish(run / "checkpoint-20", 20, 20)
    assert measure(run, tmp_path / "out", settings, **how).new == [20]
    tiny_adapter(tiny_model(), seed=99).save_pretrained(run / "checkpoint-10")
    finish(run / "checkpoint-10", 10, 20)
    failed = measure(run, tmp_path / "out", settings, **how).failed
    assert list(failed) == [10] and "top tokens of an earlier checkpoint of step 10" in failed[10]


def test_rows_of_another_checkpoint_of_that_step_do_not_stay(run, measured):
    shutil.copytree(
        measured / "kernel", measured / "refusal"
    )  # as if measured, on the old checkpoint
    tiny_adapter(tiny_model(), seed=99).save_pretrained(run / "checkpoint-20")
    finish(run / "checkpoint-20", 20, 20)
    measure(run, measured)
    assert not (measured / "refusal" / "step-00000020.parquet").exists()
    assert (measured / "refusal" / "step-00000010.parquet").exists()
    assert [e["table"] for e in events(measured) if e["state"] == "replaced"] == [
        "kernel",
        "refusal",
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (with_kernel(parameters="last:1"), ["kernel.parameters", "'all'", "'last:1'"]),
        (with_kernel(top_k=3), ["kernel.top_k", "2", "3"]),
        (replace(SETTINGS, template="raw", max_length=3), ["prompts.max_length", "None", "3"]),
        (replace(SETTINGS, load=LoadSettings(dtype="float64")), ["dtype", "float32", "float64"]),
    ],
)
def test_another_setting_into_the_same_folder_names_both_values(settings, words, run, measured):
    before = contents(measured)
    with pytest.raises(UserError) as caught:
        measure(run, measured, settings)
    assert all(word in str(caught.value) for word in words)
    assert contents(measured) == before


def test_other_prompts_or_another_base_into_the_same_folder_are_refused(run, measured, tmp_path):
    with pytest.raises(UserError, match=r"prompts\.digest"):
        measure_run(PROMPTS[:3], measured, ckpt_dir=run, settings=SETTINGS)
    other = save_base(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match="base_identity"):
        measure(run, measured, model=str(other))


def test_overwriting_forgets_what_was_measured_and_nothing_else(run, measured):
    (measured / "notes.txt").write_text("mine")
    assert measure(run, measured, with_kernel(top_k=3), overwrite=True).new == [0, 10, 20]
    assert (measured / "notes.txt").read_text() == "mine"


def test_an_interrupted_run_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    from ntkprobe.watcher.measure import CheckpointMeasurer

    original = CheckpointMeasurer.of_checkpoint

    def stop_at_20(self, scanned):
        if scanned.checkpoint.step == 20:
            raise KeyboardInterrupt
        return original(self, scanned)

    monkeypatch.setattr(CheckpointMeasurer, "of_checkpoint", stop_at_20)
    outcome = measure(run, tmp_path / "out")
    assert outcome.status == 130 and Trajectory(tmp_path / "out").steps == [0, 10]
    monkeypatch.undo()
    outcome = measure(run, tmp_path / "out")
    assert (outcome.new, outcome.known) == ([20], [0, 10])
