"""The steps that AdamW took are shared out as the trainer added up the pairs' losses."""

import re
import shutil

import numpy as np
import pytest
import training_world as world
from transformers import Qwen2ForCausalLM

import ntkprobe as ntk
from ntkprobe.errors import UserError
from ntkprobe.training.callbacks import StepCallback
from ntkprobe.training.data import Pair
from ntkprobe.training.sft import SFTConfig, train_sft


@pytest.mark.parametrize("one_mean", [True, False])
def test_parts_add_up_whether_accumulated_batches_have_one_mean_or_their_own(
    tmp_path, monkeypatch, one_mean
):
    # As the classes of Gemma 3n and 4 say: then the Trainer takes the mean of the batches' means.
    monkeypatch.setattr(Qwen2ForCausalLM, "accepts_loss_kwargs", one_mean, raising=False)
    config = SFTConfig(
        output_dir=str(tmp_path / "run"),
        use_cpu=True,
        n_general=9,
        n_safe=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_steps=6,
        learning_rate=2e-3,
        lora_dropout=0.0,
        save_at=[0],
    )
    unequal = [Pair(f"Name {i} colours.", "red, green " * (1 + 7 * i % 11)) for i in range(9)]
    base = world.saved(tmp_path / "base", num_hidden_layers=2)
    train_sft(base, unequal, world.safe(4), config, callbacks=[StepCallback()])
    found = ntk.attribute(
        tmp_path / "run", prompts=["Where is my car?"], target="tokens", tokens=("I",), over="steps"
    )
    cosine = re.search(r"cosine of ([\d.]+)", found.remarks[0])[1]
    together = re.search(r"together (.*),", found.remarks[1])[1]
    assert float(cosine) > 0.999
    np.testing.assert_allclose(found.changes.sum(1), [float(together)], rtol=5e-3)


QUICK = {"prompts": ["Where is my car?"], "target": "tokens", "tokens": ("I",), "over": "steps"}


@pytest.mark.parametrize("taken", [7, 9])
def test_more_or_fewer_steps_than_the_run_took_are_refused(trained, tmp_path, taken):
    steps = [trained.with_name("run-steps") / f"step-{n:08d}.safetensors" for n in range(1, 9)]
    for number, path in enumerate([*steps, steps[-1]][:taken], start=1):
        shutil.copy(path, tmp_path / f"step-{number:08d}.safetensors")
    with pytest.raises(UserError, match=rf"holds {taken} steps, .* took 8"):
        ntk.attribute(trained, **QUICK, recorded_steps=tmp_path)


def test_a_folder_of_another_attribution_is_refused_and_the_same_call_is_not(trained, tmp_path):
    for _ in range(2):
        ntk.attribute(trained, **QUICK, output_dir=tmp_path / "steps")
    ntk.attribute(trained, **{**QUICK, "over": "final"}, output_dir=tmp_path / "final")
    others = {"prompts": ["Another?"]}, {"over": "final"}
    for place, changes in (("final", {}), ("steps", others[0]), ("steps", others[1])):
        with pytest.raises(UserError, match=r"was made with .*give another --output-dir"):
            ntk.attribute(trained, **{**QUICK, **changes}, output_dir=tmp_path / place)


def test_a_step_that_is_not_whole_is_named(trained, tmp_path):
    shutil.copytree(trained.with_name("run-steps"), tmp_path / "steps")
    path = tmp_path / "steps" / "step-00000003.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"step-00000003\.safetensors is not whole"):
        ntk.attribute(trained, **QUICK, recorded_steps=tmp_path / "steps")


def with_setting(trained, folder, line):
    """Return a copy of the run whose record has one setting more."""
    shutil.copytree(trained, folder / "run")
    shutil.copytree(trained.with_name("run-steps"), folder / "run-steps")
    with (folder / "run" / "training.yaml").open("a") as record:
        record.write(f"{line}\n")
    return folder / "run"


@pytest.mark.parametrize(
    "line",
    [
        "label_smoothing_factor: 0.1",
        "neftune_noise_alpha: 5.0",
        "train_sampling_strategy: group_by_length",
        "dataloader_drop_last: true",
    ],
)
def test_a_run_whose_batches_or_loss_a_replay_does_not_know_is_refused(trained, tmp_path, line):
    run = with_setting(trained, tmp_path, line)
    with pytest.raises(UserError, match=f"was trained with {line.partition(':')[0]}="):
        ntk.attribute(run, **QUICK)


def test_changes_of_a_run_that_smoothed_its_labels_say_that_they_are_without(trained, tmp_path):
    run = with_setting(trained, tmp_path, "label_smoothing_factor: 0.1")
    said = "the run smoothed its labels (label_smoothing_factor=0.1)"
    found = ntk.attribute(run, **{**QUICK, "over": "final"})
    assert found.remarks[0].startswith(said)
    plain = ntk.attribute(trained, **{**QUICK, "over": "final"})
    assert not any("smoothed" in remark for remark in plain.remarks)
