"""What is shown live is what the tables say, once each, and can be thrown away."""

import sys

import pandas as pd
import pytest
from fault_workers import measure
from measured_runs import STEPS, write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import lora_run

from ntkprobe import Trajectory, UserError
from ntkprobe.watcher import Choice, parse_steps
from ntkprobe.watcher.reporting import Sinks, group_values


def shown(folder):
    """Every scalar in the event files: `step, name, value`."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    rows = [
        {"step": event.step, "name": name, "value": event.value}
        for name in reader.Tags()["scalars"]
        for event in reader.Scalars(name)
    ]
    return pd.DataFrame(rows)


def test_the_values_are_group_means_and_refusal_rates_of_every_step(tmp_path):
    run = Trajectory(write_run(tmp_path / "run-ntk", cross=0.32, final=0.5))
    values = group_values(run).pivot(index="step", columns="name", values="value")
    assert list(values.index) == list(STEPS)
    assert values["similarity/seemingly_toxic-toxic"].to_numpy() == pytest.approx(0.32)
    assert values["refusal_rate/seemingly_toxic"].iloc[-1] == pytest.approx(0.5)
    probability = run.refusal().query("step == 40 and group == 'toxic' and reduction == 'literal'")
    found = values.loc[40, "refusal_probability/toxic-literal"]
    assert found == pytest.approx(probability["probability"].mean())


def test_answers_that_were_not_generated_have_no_rate(tmp_path):
    values = group_values(Trajectory(write_run(tmp_path / "run-ntk", answers=False)))
    assert not values["name"].str.startswith("refusal_rate").any() and len(values)


def test_tensorboard_shows_each_step_once_also_after_a_restart(tmp_path):
    run, out = lora_run(tmp_path, steps=(10, 20)), tmp_path / "out"
    measure(run, out, choice=Choice(steps=parse_steps("0:10")))  # before anybody asked for it
    for steps in ("20", "0:20"):
        choice = Choice(steps=parse_steps(steps))
        measure(run, out, choice=choice, report_to=["tensorboard"])
        found = shown(out / "tensorboard" / "0-of-1").sort_values(["step", "name"])
        wanted = group_values(Trajectory(out)).sort_values(["step", "name"])
        pd.testing.assert_frame_equal(
            found.reset_index(drop=True), wanted.reset_index(drop=True), rtol=1e-6
        )
    assert set(found["step"]) == {0, 10, 20}


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'ntkprobe\[tensorboard\]'"):
        Sinks(["tensorboard"], tmp_path, "0-of-1")


def test_an_unknown_sink_is_refused_with_those_there_are_before_anything_is_measured(tmp_path):
    run = lora_run(tmp_path, steps=(10,))
    with pytest.raises(UserError, match=r"'wandb'.*choose from \['tensorboard'\]"):
        measure(run, tmp_path / "out", report_to=["wandb"])
    assert not (tmp_path / "out" / "run.json").exists()
