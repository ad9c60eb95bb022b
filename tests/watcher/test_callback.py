import time
from threading import Thread

import pytest
import torch
from fault_workers import SETTINGS
from tiny_runs import events, tiny_adapter, tiny_model
from trainer_runs import PROMPTS, adapter, train
from transformers import TrainerCallback

from ntkprobe import Trajectory
from ntkprobe.checkpoints import find_checkpoints, loaded_identity
from ntkprobe.watcher import Following, measure_run
from ntkprobe.watcher.callback import TrajectoryCallback


class Pause(TrainerCallback):
    """Training that takes its time."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_step_begin(self, *args, **kwargs):
        time.sleep(self.seconds)


def test_a_callback_misses_nothing_where_only_one_checkpoint_is_kept(tmp_path):
    train(tmp_path / "run", adapter(), TrajectoryCallback(PROMPTS, settings=SETTINGS))
    assert Trajectory(tmp_path / "run-ntk").steps == [0, 2, 4]
    assert [c.step for c in find_checkpoints(tmp_path / "run")] == [4]


@pytest.mark.slow
def test_a_real_trainer_is_followed_from_outside_while_it_deletes_all_but_two(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    rules = {"max_steps": 6, "save_steps": 1, "save_total_limit": 2}
    pause = Pause(seconds=0.3)
    trainer = Thread(target=train, args=(tmp_path / "run", adapter(), pause), kwargs=rules)
    trainer.start()
    outcome = measure_run(
        PROMPTS,
        tmp_path / "out",
        ckpt_dir=tmp_path / "run",
        model=str(tmp_path / "base"),
        settings=SETTINGS,
        following=Following(poll_interval=0.02),
    )
    trainer.join()
    assert outcome.status == 0 and Trajectory(tmp_path / "out").steps == list(range(7))
    assert [c.step for c in find_checkpoints(tmp_path / "run")] == [5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("make", [adapter, tiny_model])
def test_measuring_does_not_change_training(make, tmp_path):
    alone = train(tmp_path / "alone", make())
    watched = train(tmp_path / "run", make(), TrajectoryCallback(PROMPTS, settings=SETTINGS))
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


@pytest.mark.slow
@pytest.mark.parametrize("make", [adapter, tiny_model])
def test_the_model_in_memory_and_its_checkpoint_are_the_same_measurement(make, tmp_path):
    model = make()
    if make is adapter:
        tiny_model().save_pretrained(tmp_path / "base")
    train(tmp_path / "run", model, TrajectoryCallback(PROMPTS, settings=SETTINGS))
    options = {"model": str(tmp_path / "base")} if make is adapter else {}
    again = measure_run(
        PROMPTS, tmp_path / "disk", ckpt_dir=tmp_path / "run", settings=SETTINGS, **options
    )
    assert 4 in again.new
    memory, disk = (
        Trajectory(tmp_path / name).kernel().query("step == 4")["norm"].to_numpy()
        for name in ("run-ntk", "disk")
    )
    assert abs(memory / disk - 1).max() < 1e-4


def test_a_failure_to_measure_does_not_end_the_training(tmp_path, monkeypatch):
    callback = TrajectoryCallback(PROMPTS, settings=SETTINGS)
    monkeypatch.setattr("ntkprobe.watcher.model_measurer.measure_kernel", lambda *_, **__: 1 / 0)
    train(tmp_path / "run", adapter(), callback)
    assert [e["state"] for e in events(tmp_path / "run-ntk")] == ["measuring", "failed"] * 3


@pytest.mark.slow
def test_a_run_that_goes_on_is_measured_from_there(tmp_path):
    for steps, resume in [(2, False), (4, True)]:
        callback = TrajectoryCallback(PROMPTS, settings=SETTINGS)
        train(tmp_path / "run", adapter(), callback, max_steps=steps, resume=resume)
    done = [event for event in events(tmp_path / "run-ntk") if event["state"] == "done"]
    assert [event["step"] for event in done] == [0, 2, 4]


def test_gradient_checkpointing_is_no_obstacle(tmp_path):
    callback = TrajectoryCallback(PROMPTS, settings=SETTINGS)
    train(tmp_path / "run", adapter(), callback, gradient_checkpointing=True)
    assert Trajectory(tmp_path / "run-ntk").steps == [0, 2, 4]


def test_which_model_it_is_in_memory_depends_on_its_settings_as_well():
    plain = loaded_identity(tiny_model())
    assert loaded_identity(tiny_model()) == plain
    other = tiny_model()
    other.config.rms_norm_eps *= 10
    assert loaded_identity(other) != plain
    adapted = [tiny_adapter(tiny_model(), seed=1) for _ in range(3)]
    adapted[2].peft_config["default"].lora_alpha *= 4
    first, same, stronger = map(loaded_identity, adapted)
    assert first == same != stronger
