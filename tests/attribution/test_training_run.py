"""What a run was trained with, read back from its folder."""

import json

import pytest
import training_world as world
from transformers import TrainerCallback

from ntkprobe.attribution.training_run import TrainingRun
from ntkprobe.training.runs import REPORT
from ntkprobe.training.sft import SFTConfig, train_sft


class StopAfterThree(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == 3


@pytest.mark.parametrize("recorded", [True, False], ids=["by the report", "by the checkpoint"])
def test_the_learning_rates_of_a_run_that_a_callback_stopped_are_those_it_had(tmp_path, recorded):
    run = tmp_path / "run"
    config = SFTConfig(
        output_dir=str(run),
        use_cpu=True,
        n_general=6,
        n_safe=4,
        gradient_accumulation_steps=1,
        max_steps=8,
        save_at=[3],
    )
    base = world.saved(tmp_path / "base")
    train_sft(base, world.general(6), world.safe(4), config, callbacks=[StopAfterThree()])
    if not recorded:  # as runs of before are
        report = json.loads((run / REPORT).read_text())
        del report["planned_steps"]
        (run / REPORT).write_text(json.dumps(report))
    log = json.loads((run / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    logged = [row["learning_rate"] for row in log]
    assert TrainingRun(run).learning_rates() == pytest.approx(logged)
    assert len(logged) == 3 and logged[2] > 0.8 * logged[1]
