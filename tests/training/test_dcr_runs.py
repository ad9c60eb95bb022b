"""Runs of the contrastive stage: the same again, gone on with, finished, refused, told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_world as world
from dcr_runs import TOKENIZER, config, read, trainer
from training_world import same
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from ntkprobe.errors import UserError
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.training.callbacks import install
from ntkprobe.training.dcr import train_dcr


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path, base):
    runs = [
        read(train_dcr(base, world.prompts(), config(tmp_path / f"{i}", seed=seed)))
        for i, seed in enumerate([0, 0, 1])
    ]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


class Interrupt(TrainerCallback):
    """Ctrl-C after step 5, a step after a checkpoint was due."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"lora_rank": 2, "gradient_accumulation_steps": 2}],
    ids=["full", "lora, accumulated"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, changes):
    base = world.saved(tmp_path / "base", "gpt2")  # has dropout
    settings = {"max_steps": 11, "save_strategy": "steps", "save_steps": 2, **changes}
    whole = read(train_dcr(base, world.prompts(), config(tmp_path / "whole", **settings)))
    with monkeypatch.context() as patch:
        patch.setattr("ntkprobe.training.callbacks.Progress.on_step_end", Interrupt().on_step_end)
        with pytest.raises(KeyboardInterrupt):
            train_dcr(base, world.prompts(), config(tmp_path / "cut", **settings))
    assert not (tmp_path / "cut/final").exists()
    assert same(whole, read(train_dcr(base, world.prompts(), config(tmp_path / "cut", **settings))))
    report = json.loads((tmp_path / "cut/training.json").read_text())
    assert [row["from_step"] for row in report["stages"] if "from_step" in row] == [4]


@pytest.mark.slow
def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path, base):
    settings = {"save_strategy": "steps", "save_steps": 2}
    final = train_dcr(base, world.prompts(), config(tmp_path / "run", **settings))
    whole = read(final)
    final.rename(tmp_path / "aside")
    (tmp_path / "run/checkpoint-4/trainer_state.json").unlink()
    again = train_dcr(base, world.prompts(), config(tmp_path / "run", **settings))
    assert same(whole, read(again))


def test_a_run_that_lacks_only_its_final_model_takes_no_further_step(tmp_path, base):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    final = train_dcr(base, world.prompts(), config(tmp_path / "run", **settings))
    whole = read(final)
    final.rename(tmp_path / "aside")
    assert same(whole, read(train_dcr(base, world.prompts(), config(tmp_path / "run", **settings))))
    assert not (tmp_path / "run/checkpoint-5").exists()


def test_a_finished_run_is_not_repeated(tmp_path, base):
    final = train_dcr(base, world.prompts(), config(tmp_path))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert train_dcr(base, world.prompts(), config(tmp_path, logging_steps=3)) == final
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"layer": 3}, ["layer = 2", "3"]), ({"learning_rate": 0.5}, ["learning_rate = 0.01", "0.5"])],
)
def test_another_setting_in_the_same_folder_is_refused_with_both_values(
    tmp_path, base, changes, words
):
    train_dcr(base, world.prompts(), config(tmp_path))
    with pytest.raises(UserError) as error:
        train_dcr(base, world.prompts(), config(tmp_path, **changes))
    assert all(word in str(error.value) for word in words)


def test_other_prompts_in_the_same_folder_are_refused(tmp_path, base):
    train_dcr(base, world.prompts(), config(tmp_path))
    with pytest.raises(UserError, match="the content of prompts"):
        train_dcr(base, world.prompts()[1:], config(tmp_path))


def test_a_folder_with_foreign_checkpoints_is_refused(tmp_path, base):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(UserError, match="checkpoints of something else"):
        train_dcr(base, world.prompts(), config(tmp_path))


def test_the_final_model_is_an_ordinary_checkpoint_with_its_tokenizer(tmp_path, base):
    final = train_dcr(base, world.prompts(), config(tmp_path, lora_rank=2))
    model = AutoModelForCausalLM.from_pretrained(final)
    assert not hasattr(model, "peft_config") and model.config.num_hidden_layers == 4
    assert AutoTokenizer.from_pretrained(final)("a b")["input_ids"] == TOKENIZER("a b")["input_ids"]


def test_the_final_configuration_is_the_bases(tmp_path, base):
    final = train_dcr(base, world.prompts(), config(tmp_path))
    old, new = (json.loads((Path(p) / "config.json").read_text()) for p in (base, final))
    tokens = {"eos_token_id", "pad_token_id"}  # transformers takes them from the tokenizer
    assert {k for k in old if old[k] != new[k]} <= tokens and old.keys() == new.keys()


@pytest.mark.parametrize(
    ("said", "left_out"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, ["temperature", "top_p"]),
        ({"temperature": 0.6, "do_sample": True}, []),
        ({"length_penalty": 2.0}, ["length_penalty"]),
    ],
)
def test_settings_of_another_way_to_generate_do_not_keep_a_run_from_being_saved(
    tmp_path, said, left_out
):
    start = Path(world.saved(tmp_path / "base"))
    (start / "generation_config.json").write_text(json.dumps(said))
    final = train_dcr(str(start), world.prompts(), config(tmp_path / "run", max_steps=1))
    kept = json.loads((final / "generation_config.json").read_text())
    assert {name: kept.get(name) for name in said} == {
        name: None if name in left_out else value for name, value in said.items()
    }
    notes = json.loads((tmp_path / "run/training.json").read_text()).get("notes", [])
    assert bool(left_out) == any("generation_config" in note for note in notes)


def test_callbacks_reach_the_trainer(tmp_path, base):
    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **_):
            self.steps += 1

    count = Count()
    train_dcr(base, world.prompts(), config(tmp_path), callbacks=[count])
    assert count.steps == 4


def test_what_is_trained_is_told_and_what_is_left_out_noted(tmp_path, base, capsys):
    long = PromptSet.from_texts({"toxic": ["How " * 100]})
    given = PromptSet(world.prompts().prompts + long.prompts)
    train_dcr(base, given, config(tmp_path, max_length=99))
    seen = capsys.readouterr().err
    assert "20 seemingly toxic and 20 toxic prompts of 40 to 49 tokens, template chat" in seen
    assert "1 prompts longer than 99 tokens left out" in seen
    notes = json.loads((tmp_path / "training.json").read_text())["notes"]
    assert notes == ["1 prompts longer than 99 tokens left out"]


def test_stages_are_timed_and_the_data_counted(tmp_path, base):
    normal = PromptSet.from_texts({"normal": ["Name a colour."]})
    given = PromptSet(world.prompts().prompts + normal.prompts)
    train_dcr(base, given, config(tmp_path))
    report = json.loads((tmp_path / "training.json").read_text())
    assert [row["stage"] for row in report["stages"]] == ["load", "encode", "train"]
    assert all(row["seconds"] >= 0 and row["peak_gib"] > 0 for row in report["stages"])
    counts = {"seemingly_toxic": 20, "toxic": 20, "other_groups": 1, "too_long": 0}
    assert counts.items() <= report["data"].items()


# Several processes


def test_parameters_in_pieces_are_refused(tmp_path):
    made = trainer(tmp_path)
    made.is_fsdp_enabled = True
    with pytest.raises(UserError, match="FSDP is not supported: its processes hold pieces"):
        install(made, "dcr", None)


WORKER = """
import sys; sys.path.insert(0, sys.argv[1])
import training_world as world
from ntkprobe.training.dcr import DCRConfig, train_dcr
settings = dict(layer=2, max_steps=4, learning_rate=0.1, optim="sgd", use_cpu=True)
settings |= {"nll_weight": float(sys.argv[6])}
settings |= {"per_device_train_batch_size": int(sys.argv[4])}
settings |= {"gradient_accumulation_steps": int(sys.argv[5])}
config = DCRConfig(output_dir=sys.argv[3], **settings)
train_dcr(sys.argv[2], world.prompts(), config)
"""


@pytest.mark.slow
@pytest.mark.parametrize("nll_weight", ["0.1", "0"])
def test_two_processes_that_accumulate_train_as_one_with_the_whole_batch(
    tmp_path, base, nll_weight
):
    (tmp_path / "worker.py").write_text(WORKER)
    here = str(Path(__file__).parents[1] / "helpers")
    for processes, *sizes in ((1, "8", "1"), (2, "2", "2")):
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        launch += ["--master-port=0", "--rdzv-endpoint=localhost:0", "--rdzv-backend=c10d"]
        args = ["worker.py", here, base, str(tmp_path / str(processes)), *sizes, nll_weight]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*launch, *args], check=True, cwd=tmp_path, env=env, timeout=300)
    one, two = (read(tmp_path / n / "final") for n in "12")
    logs = [_losses(tmp_path / n) for n in "12"]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5) and len(logs[0]) == 4
    start = read(Path(base))
    for name in one:  # plain gradient descent: Adam would hide a wrong scale of the gradient
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)
    assert max((one[name] - start[name]).abs().max() for name in one) > 1e-2


def _losses(folder: Path) -> list[float]:
    last = max(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    state = json.loads((last / "trainer_state.json").read_text())
    return [row["loss"] for row in state["log_history"] if "loss" in row]
