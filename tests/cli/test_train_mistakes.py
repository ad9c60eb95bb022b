"""What `ntkprobe train` refuses: one line says what is wrong and what is allowed."""

import pytest
from train_calls import dcr, sft

from ntkprobe.cli import main
from ntkprobe.cli._train_settings import resolved
from ntkprobe.errors import UserError
from ntkprobe.training.dcr import DCRConfig
from ntkprobe.training.sft import SFTConfig


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "9"], "layer 9 does not exist: Qwen2ForCausalLM has blocks 1 to 4"),
        (["--model", "/nowhere"], "no model at"),
        (["--prompts", "none.csv"], "none.csv"),
        (["--pooling", "max"], "pooling is 'max': choose from ['last', 'mean']"),
        (["--preset", "gpt-5"], "no preset 'gpt-5': choose from llama-3-8b, qwen2.5-1.5b, qwen"),
        (["--preset", "paper"], "the preset 'paper' says nothing about dcr"),
        (["--config", "none.yaml"], "--config none.yaml cannot be read"),
        (["--set", "weight_decay"], "write NAME=VALUE"),
        (["--set", "wait_decay=1"], "no setting 'wait_decay': did you mean 'weight_decay'?"),
        (["--set", "weight_decay=much"], "weight_decay is 'much': give float"),
        (["--set", "optim=adam9"], "adam9"),
        (["--save-at", "soon"], "give steps joined by commas"),
        (["--template", "chaat"], "chaat"),
        (["--device", "cuda:1"], "CUDA_VISIBLE_DEVICES"),
        (["--nll-on", "corpus"], "give a corpus"),
        (["--toxic-ratio", "9"], "needs 180 toxic prompts: there are 20"),
        (["--max-length", "3"], "longer than max_length=3"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(files, tmp_path, capsys, words, message):
    assert dcr(files, tmp_path, *words) == 2
    seen = capsys.readouterr()
    assert message in seen.err.splitlines()[-1] and seen.out == ""
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (dcr, ["--batch-size", "0"], "(--batch-size) is 0: give a whole number, 1 or more"),
        (sft, ["--batch-size", "0"], "(--batch-size) is 0: give a whole number, 1 or more"),
        (sft, ["--accumulate", "0"], "(--accumulate) is 0: give a whole number, 1 or more"),
        (sft, ["--lr", "-1"], "(--lr) is -1.0: give a number, 0 or more"),
        (sft, ["--lr", "nan"], "(--lr) is nan: give a number, 0 or more"),
        (dcr, ["--epochs", "0"], "(--epochs) is 0.0: give a number above 0"),
        (dcr, ["--max-steps", "0"], "max_steps is 0: give a whole number, 1 or more, or leave it"),
        (dcr, ["--seed", "-1"], "seed is -1: give a whole number from 0 to 4294967295"),
        (dcr, ["--lora-rank", "-1"], "lora_rank is -1: give a whole number, 0 or more"),
        (dcr, ["--toxic-ratio", "0"], "toxic_ratio is 0.0: give a number above 0"),
        (dcr, ["--set", "gradient_accumulation_steps=0"], "gradient_accumulation_steps is 0: "),
        (sft, ["--lora-dropout", "2"], "lora_dropout is 2.0: give a number from 0 to below 1"),
        (sft, ["--lora-alpha", "0"], "lora_alpha is 0: give a number above 0"),
        (sft, ["--save-steps", "-5"], "save_steps is -5: give a whole number, 1 or more, or a"),
        (sft, ["--save-steps", "0"], "save_steps is 0: give a whole number, 1 or more, or a"),
    ],
)
def test_a_number_out_of_range_names_the_option_and_what_is_allowed(
    files, tmp_path, capsys, command, words, message
):
    assert command(files, tmp_path, *words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("ntkprobe: ") and message in line
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize("kind", [DCRConfig, SFTConfig])
def test_the_ends_of_a_range_are_allowed(tmp_path, kind):
    ends = {"seed": 2**32 - 1, "learning_rate": 0, "save_steps": 0.5, "lora_dropout": 0}
    made = kind(output_dir=str(tmp_path), use_cpu=True, max_steps=1, num_train_epochs=0.1, **ends)
    assert {name: getattr(made, name) for name in ends} == ends


def test_a_stage_without_its_layer_is_asked_for_it(files, tmp_path, capsys):
    words = ["--model", files / "base", "--prompts", files / "prompts.csv", "--device", "cpu"]
    assert main(["train", "dcr", *map(str, words), "--output-dir", str(tmp_path)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "ntkprobe: no layer: give --layer, or a preset or file that names it"


def test_bfloat16_without_a_gpu_that_has_it_names_our_options(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ntkprobe.training.config.is_torch_bf16_gpu_available", lambda: False)
    assert dcr(files, tmp_path, "--bf16", "--device", "auto") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("ntkprobe: bf16 (--bf16) needs a GPU") and "--device cpu" in line


@pytest.mark.parametrize("name", ["model", "general", "safe"])
def test_what_is_missing_is_named(files, tmp_path, capsys, name):
    given = {n: str(files / f) for n, f in FILES.items() if n != name}
    words = [word for n, value in given.items() for word in (f"--{n}", value)]
    assert main(["train", "sft", *words, "--output-dir", str(tmp_path)]) == 2
    assert f"no {name}: give --{name}" in capsys.readouterr().err


FILES = {"model": "base", "general": "general.json", "safe": "safe.json"}


def test_a_record_of_the_other_stage_is_refused(files, tmp_path):
    assert dcr(files, tmp_path) == 0
    with pytest.raises(UserError, match="is of the stage dcr, not sft"):
        resolved("sft", {"config": tmp_path / "training.yaml"})


def test_a_wrong_setting_takes_no_folder(files, tmp_path):
    assert dcr(files, tmp_path / "run", "--layer", "9") == 2
    assert dcr(files, tmp_path / "run") == 0
