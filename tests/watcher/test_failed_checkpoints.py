"""What is told of each checkpoint, and what goes wrong: damaged ones, mistakes, memory."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import events, finish
from watched_runs import identity_of, measure, with_kernel

from ntkprobe import Trajectory, UserError
from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.gram import Gram
from ntkprobe.watcher import Choice, parse_steps

# States


def test_every_state_of_a_checkpoint_is_told_in_its_order(run, tmp_path):
    (run / "checkpoint-20" / "adapter_model.safetensors").unlink()
    measure(run, tmp_path / "out", choice=Choice(steps=parse_steps("5:")))
    told = [(e["state"], e.get("step")) for e in events(tmp_path / "out")]
    assert told == [
        ("incomplete", 20),
        ("ready", 10),
        ("measuring", 10),
        ("compared", 10),
        ("done", 10),
    ]
    incomplete, ready, _, _, done = events(tmp_path / "out")
    assert incomplete["reason"] == "no adapter_model.safetensors" and done["seconds"] > 0
    assert ready["identity"] == identity_of(tmp_path / "out", 10)


def test_what_was_left_alone_is_told_with_the_reason(run, measured):
    (measured / "kernel" / "step-00000010.parquet").unlink()
    measure(run, measured, choice=Choice(steps=parse_steps("0:10")))
    *_, known, unwanted = events(measured)
    assert (known["state"], known["steps"]) == ("skipped", [0]) and "before" in known["reason"]
    assert (unwanted["state"], unwanted["count"]) == ("skipped", 1)


# What goes wrong


def test_one_bad_checkpoint_does_not_stop_the_others(run, tmp_path):
    weights = run / "checkpoint-10" / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[sorted(tensors)[0]][0, 0] = float("nan")
    save_file(tensors, weights)
    finish(run / "checkpoint-10", 10, 20)
    outcome = measure(run, tmp_path / "out")
    assert outcome.new == [0, 20] and outcome.status == 1
    assert "NaN" in outcome.failed[10]
    (failed,) = (e for e in events(tmp_path / "out") if e["state"] == "failed")
    assert (failed["step"], failed["tries"], failed["reason"]) == (10, 1, outcome.failed[10])


def test_an_incomplete_checkpoint_is_named_and_measured_once_it_is_whole(run, tmp_path):
    hidden = (run / "checkpoint-10" / "adapter_config.json").rename(tmp_path / "config")
    outcome = measure(run, tmp_path / "out")
    assert outcome.status == 1 and "adapter_config.json" in outcome.failed[10]
    hidden.rename(run / "checkpoint-10" / "adapter_config.json")
    assert measure(run, tmp_path / "out").new == [10]


def test_where_nothing_can_be_measured_the_reason_is_the_one_line(run, tmp_path):
    shutil.rmtree(run / "checkpoint-20")
    (run / "checkpoint-10" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        measure(run, tmp_path / "out")


def test_a_mistake_in_the_settings_is_told_before_anything_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ntkprobe.watcher.models.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match="no term"):
        measure(run, tmp_path / "out", with_kernel(parameters="everything"))


def test_an_adapter_whose_base_is_not_here_asks_for_it_by_name(run, tmp_path):
    for folder in run.iterdir():
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "some-owner/some-model"
        (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="--model some-owner/some-model"):
        measure(run, tmp_path / "out")


def test_no_network_is_used_for_local_checkpoints(run, source, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("network"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("network"))
    assert measure(run, tmp_path / "lora").new == [0, 10, 20]
    assert measure(source / "full", tmp_path / "full").new == [10, 20]


# Too little memory

CPU_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def out_of_memory(monkeypatch, estimator, fits, error=CPU_MEMORY):
    """Let an estimator have room for `fits` prompts at a time; return the sizes tried."""
    tried, original = [], estimator.__call__

    def limited(self, model, probes, parameters):
        if len(probes) > 2:  # not the two of `verify`
            tried.append(self.batch_size)
            if self.batch_size == "auto" or self.batch_size > fits:
                raise error
        return original(self, model, probes, parameters)

    monkeypatch.setattr(estimator, "__call__", limited)
    return tried


@pytest.mark.slow
def test_a_batch_size_given_is_the_kernels_and_too_large_a_one_says_so(run, tmp_path, monkeypatch):
    tried, one = out_of_memory(monkeypatch, Gram, 2), Choice(steps=parse_steps("0"))
    settings = with_kernel(estimator="gram")
    measure(run, tmp_path / "out", replace(settings, batch_size=2), choice=one)
    assert tried == [2] and Trajectory(tmp_path / "out").steps == [0]
    with pytest.raises(UserError, match="with 3 prompts at a time: try a smaller --batch-size"):
        measure(run, tmp_path / "more", replace(settings, batch_size=3), choice=one)
    assert tried == [2, 3]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("of a GPU"), CPU_MEMORY, MemoryError()])
def test_what_gram_could_not_fit_by_itself_is_not_tried_again(run, tmp_path, monkeypatch, error):
    tried = out_of_memory(monkeypatch, Gram, 0, error)
    with pytest.raises(
        UserError, match="fewer prompts at a time would not help: try a smaller --per"
    ):
        measure(run, tmp_path / "out", with_kernel(estimator="gram"))
    assert set(tried) == {"auto"} and len(tried) <= 3  # once a checkpoint


@pytest.mark.slow
def test_an_estimator_that_does_not_halve_by_itself_is_given_smaller_batches(
    run, tmp_path, monkeypatch
):
    tried = out_of_memory(monkeypatch, FiniteDifference, 4)
    one = Choice(steps=parse_steps("0"))
    measure(run, tmp_path / "out", with_kernel(estimator="finite_difference"), choice=one)
    assert tried == [128, 16, 8, 4] and Trajectory(tmp_path / "out").steps == [0]
