"""`ntkprobe train`: what is typed, what is read from files, and what is refused."""

import json
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
import training_world as world
import yaml
from safetensors.torch import load_file

from ntkprobe.cli import main
from ntkprobe.cli._train_settings import configured, resolved
from ntkprobe.errors import UserError
from ntkprobe.presets.settings import preset_about, preset_names, preset_settings
from ntkprobe.training.dcr import DCRConfig
from ntkprobe.training.sft import SFTConfig

PAPER = ("qwen2.5-1.5b", "qwen2.5-7b", "llama-3-8b")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    world.saved(folder / "base")
    world.prompts().frame().to_csv(folder / "prompts.csv", index=False)
    for name, pairs in (("general", world.general()), ("safe", world.safe())):
        rows = [{"instruction": p.prompt, "input": "", "output": p.response} for p in pairs]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def dcr(files: Path, output: Path, *more: str) -> int:
    words = ["train", "dcr", "--model", files / "base", "--prompts", files / "prompts.csv"]
    words += ["--layer", "2", "--max-steps", "2", "--batch-size", "8", "--device", "cpu"]
    return main([str(word) for word in (*words, "--output-dir", output, *more)])


def sft(files: Path, output: Path, *more: str) -> int:
    words = ["train", "sft", "--model", files / "base", "--general", files / "general.json"]
    words += ["--safe", files / "safe.json", "--accumulate", "2", "--max-steps", "2"]
    words += ["--n-general", "8", "--n-safe", "4", "--device", "cpu"]
    return main([str(word) for word in (*words, "--output-dir", output, *more)])


def weights(folder: Path):
    return load_file(next((folder / "final").glob("*model.safetensors")))


def same(a, b) -> bool:
    return all(a[name].equal(b[name]) for name in a) and a.keys() == b.keys()


# Runs


def test_one_command_trains_each_stage_and_ends_with_what_to_do_next(files, tmp_path, capsys):
    assert dcr(files, tmp_path / "dcr") == 0
    assert capsys.readouterr().out.endswith(
        f"next: ntkprobe train sft --model {tmp_path}/dcr/final --general FILE --safe FILE\n"
    )
    assert sft(files, tmp_path / "stl", "--model", str(tmp_path / "dcr/final")) == 0
    seen = capsys.readouterr()
    assert seen.out == (
        f"trained: {tmp_path}/stl/final; "
        f"next: ntkprobe measure --ckpt-dir {tmp_path}/stl --prompts FILE\n"
    )
    assert "load" in seen.err and "GiB" in seen.err


@pytest.mark.slow
@pytest.mark.parametrize("command", [dcr, sft])
def test_the_record_of_a_run_replays_it(files, tmp_path, command):
    stage = command.__name__
    assert command(files, tmp_path / "a", "--lr", "3e-3", "--set", "weight_decay=0.1") == 0
    words = ["train", stage, "--config", tmp_path / "a/training.yaml", "--output-dir"]
    assert main([str(word) for word in (*words, tmp_path / "b")]) == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    a, b = (yaml.safe_load((tmp_path / n / "training.yaml").read_text()) for n in "ab")
    assert a == b
    assert [a["weight_decay"], a["learning_rate"]] == pytest.approx([0.1, 3e-3])


def test_typed_options_beat_the_record(files, tmp_path):
    assert dcr(files, tmp_path / "a") == 0
    words = ["train", "dcr", "--config", tmp_path / "a/training.yaml", "--seed", "1"]
    assert main([str(word) for word in (*words, "--output-dir", tmp_path / "b")]) == 0
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_underscores_will_do(files, tmp_path):
    assert dcr(files, tmp_path, "--nll_weight", "0", "--save_at", "1") == 0
    assert (tmp_path / "checkpoint-1").is_dir() and (tmp_path / "checkpoint-2").is_dir()


def test_a_finished_run_is_told_and_can_be_begun_anew(files, tmp_path, capsys):
    assert dcr(files, tmp_path) == 0
    first = weights(tmp_path)
    assert dcr(files, tmp_path) == 0
    assert "already trained: " in capsys.readouterr().out
    assert dcr(files, tmp_path, "--seed", "1", "--overwrite") == 0
    assert not same(first, weights(tmp_path))


def test_overwriting_leaves_alone_what_is_not_a_run(files, tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "thesis.txt").write_text("years of work")
    assert dcr(files, tmp_path, "--overwrite") == 2
    assert (tmp_path / "checkpoint-7").is_dir() and (tmp_path / "thesis.txt").exists()


def test_the_same_files_elsewhere_are_the_same_run_and_changed_ones_are_not(
    files, tmp_path, capsys
):
    assert dcr(files, tmp_path / "run") == 0
    rows = pd.read_csv(files / "prompts.csv")
    rows.to_csv(tmp_path / "moved.csv", index=False)
    moved = ["train", "dcr", "--config", tmp_path / "run/training.yaml"]
    moved += ["--output-dir", tmp_path / "run", "--prompts", tmp_path / "moved.csv"]
    assert main([str(word) for word in moved]) == 0
    rows[1:].to_csv(tmp_path / "moved.csv", index=False)
    assert main([str(word) for word in moved]) == 2
    assert "the content of prompts" in capsys.readouterr().err


def test_prompts_of_an_evaluation_are_compared(files, tmp_path, capsys):
    held_out = ["--held-out", str(files / "prompts.csv")]
    assert dcr(files, tmp_path / "a", *held_out) == 0
    assert "40 prompts are in dcr and prompts.csv" in capsys.readouterr().err
    assert dcr(files, tmp_path / "b", *held_out, "--strict") == 2
    assert not (tmp_path / "b/final").exists()


def test_an_interrupted_run_exits_130_and_goes_on(files, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("ntkprobe.training.callbacks.Progress.on_step_end", _interrupt)
        assert dcr(files, tmp_path, "--save-steps", "1") == 130
    assert "interrupted; the same command goes on where it was" in capsys.readouterr().err
    assert not (tmp_path / "final").exists()
    assert dcr(files, tmp_path, "--save-steps", "1") == 0


def _interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("limit", [100_000, 230_000], ids=["weights", "optimizer"])
def test_a_disk_that_fills_up_is_told_and_the_run_goes_on_later(files, tmp_path, capsys, limit):
    with _files_up_to(limit):
        assert dcr(files, tmp_path, "--save-steps", "2") == 1
    assert "cannot write a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "final").exists()
    assert dcr(files, tmp_path, "--save-steps", "2") == 0


@contextmanager
def _files_up_to(size: int):
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_told(files, tmp_path, capsys, monkeypatch, error):
    def exhaust(*_, **__):
        raise error

    monkeypatch.setattr("ntkprobe.training.dcr.DCRTrainer.compute_loss", exhaust)
    assert dcr(files, tmp_path) == 2
    assert "use a smaller --batch-size" in capsys.readouterr().err


def test_a_training_that_diverged_makes_no_final_model(files, tmp_path, capsys):
    assert dcr(files, tmp_path, "--lr", "1e30", "--set", "max_grad_norm=0") == 2
    assert "NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "final").exists()


# Settings


def test_a_file_beats_the_preset_and_typed_options_beat_both(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("layer: 5\nmargin: 0.4\nlearning-rate: 1e-3\n")
    made = resolved("dcr", {"preset": "qwen2.5-1.5b", "config": path, "layer": 7, "set": None})
    assert (made["layer"], made["margin"], made["scale"]) == (7, 0.4, 16)
    assert made["learning_rate"] == pytest.approx(1e-3)


def test_a_way_of_saving_replaces_the_presets():
    assert preset_settings("tiny", "sft")["save_at"]
    config, _ = configured(
        SFTConfig, {**resolved("sft", {"preset": "tiny", "save_steps": 7}), "output_dir": "unused"}
    )
    assert config.save_at is None and config.save_steps == 7
    assert config.save_strategy.value == "steps"
    typed = resolved("sft", {"preset": "tiny", "save_at": "0,1, 2"})
    assert typed["save_at"] == [0, 1, 2]


@pytest.mark.parametrize("name", [*PAPER, "tiny"])
@pytest.mark.parametrize(("stage", "kind"), [("dcr", DCRConfig), ("sft", SFTConfig)])
def test_every_preset_is_a_configuration(name, stage, kind):
    settings = {**resolved(stage, {"preset": name}), "output_dir": "unused"}
    config, inputs = configured(kind, settings)
    assert inputs["model"] and config.template in ("chat", "qwen2.5", "llama-3")
    assert name in preset_names()


@pytest.mark.parametrize(
    ("name", "layer", "epochs"),
    [("qwen2.5-1.5b", 13, (3, 3)), ("qwen2.5-7b", 13, (2, 4)), ("llama-3-8b", 15, (3, 4))],
)
def test_presets_have_the_papers_numbers(name, layer, epochs):
    contrast, align = (preset_settings(name, stage) for stage in ("dcr", "sft"))
    assert contrast["layer"] == layer
    assert (contrast["num_train_epochs"], align["num_train_epochs"]) == epochs
    keys = ("margin", "scale", "nll_weight", "per_device_train_batch_size", "learning_rate")
    assert [contrast[key] for key in keys] == [0.25, 16, 0.001, 32, 1e-4]
    keys = ("lora_rank", "lora_alpha", "lora_dropout", "learning_rate", "warmup_steps")
    assert [align[key] for key in keys] == [8, 32, 0.05, 1e-4, 0.03]
    assert align["per_device_train_batch_size"] * align["gradient_accumulation_steps"] == 128


@pytest.mark.parametrize("name", PAPER)
def test_presets_train_on_what_the_paper_trains_on(name):
    """Section 6: 250 safe prompts of XSTest, 500 of HH-RLHF. Eq. 1 sums over the response."""
    contrast, align = (resolved(stage, {"preset": name}) for stage in ("dcr", "sft"))
    assert (contrast["n_seemingly_toxic"], contrast["n_toxic"]) == (250, 500)
    assert contrast["prompts"] == ["xstest_prompts.csv:label=safe", "hh_rlhf.jsonl=toxic"]
    assert (align["n_general"], align["n_safe"], align["loss_on"]) == (20000, 1000, "response")
    for settings in (contrast, align):  # left open by the paper, so that they are named
        assert {"lr_scheduler_type", "max_grad_norm", "weight_decay", "dtype"} <= set(settings)


def test_a_preset_draws_its_numbers_from_xstests_safe_prompts_and_another_files_toxic_ones(
    files, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    labels = ["safe", "unsafe"]
    xstest = [
        {
            "id": i,
            "prompt": f"x {i}",
            "type": "t",
            "label": labels[i >= 250],
            "focus": "",
            "note": "",
        }
        for i in range(450)
    ]
    pd.DataFrame(xstest).to_csv("xstest_prompts.csv", index=False)
    hh = [{"prompt": f"h {i}"} for i in range(700)]
    Path("hh_rlhf.jsonl").write_text("\n".join(map(json.dumps, hh)))
    words = ["train", "dcr", "--preset", "qwen2.5-1.5b", "--model", str(files / "base")]
    words += ["--layer", "2", "--max-steps", "1", "--template", "chat", "--device", "cpu"]
    words += ["--held-out", "xstest_prompts.csv:label=unsafe", "--output-dir"]
    assert main([*words, "run"]) == 0
    assert "250 seemingly toxic and 500 toxic prompts" in capsys.readouterr().err
    data = pd.read_parquet("run/data.parquet")
    assert set(data["prompt"][data["group"] == "seemingly_toxic"]) == {f"x {i}" for i in range(250)}
    toxic = set(data["prompt"][data["group"] == "toxic"])
    assert len(toxic) == 500 and toxic < {f"h {i}" for i in range(700)}
    assert json.loads(Path("run/training.json").read_text())["overlaps"] == {}
    settings = yaml.safe_load(Path("run/training.yaml").read_text())
    assert settings["prompts"] == ["xstest_prompts.csv:label=safe", "hh_rlhf.jsonl=toxic"]
    assert main([*words, "whole", "--prompts", "xstest_prompts.csv"]) == 2  # 200, not 500
    assert "n_toxic needs 500 toxic prompts: there are 200" in capsys.readouterr().err


def test_a_typed_ratio_replaces_the_presets_number_and_a_typed_number_a_files_ratio(tmp_path):
    typed = resolved("dcr", {"preset": "qwen2.5-1.5b", "toxic_ratio": 1.0})
    assert (typed["n_toxic"], typed["toxic_ratio"]) == (None, 1.0)
    (tmp_path / "c.yaml").write_text("toxic_ratio: 2.0")
    typed = resolved("dcr", {"config": tmp_path / "c.yaml", "n_toxic": 5})
    assert (typed["n_toxic"], typed["toxic_ratio"]) == (5, None)
    assert resolved("dcr", {"preset": "qwen2.5-1.5b", "layer": 3})["n_toxic"] == 500


@pytest.mark.parametrize("name", PAPER)
def test_presets_of_models_we_do_not_have_say_so(files, tmp_path, capsys, name):
    dcr(files, tmp_path, "--preset", name, "--template", "chat")
    assert f"preset {name}: the paper's runs of" in capsys.readouterr().err
    assert "not run by us on the real weights" in preset_about(name)


def test_the_tiny_preset_brings_its_model_and_data_along(tmp_path, capsys):
    words = ["train", "dcr", "--preset", "tiny", "--max-steps", "1", "--device", "cpu"]
    assert main([*words, "--output-dir", str(tmp_path)]) == 0
    record = yaml.safe_load((tmp_path / "training.yaml").read_text())
    assert record["model"] == "package:ntkprobe.tiny/model" and "model" in record["digests"]
    words = ["train", "sft", "--preset", "tiny", "--max-steps", "1", "--device", "cpu"]
    words += ["--n-general", "20", "--n-safe", "5", "--model", str(tmp_path / "final")]
    assert main([*words, "--output-dir", str(tmp_path / "stl")]) == 0


# Mistakes


@pytest.mark.parametrize("command", ["dcr", "sft", "measure", "evaluate"])
@pytest.mark.parametrize("name", ["foo", *preset_names()])
def test_a_preset_that_a_command_has_not_names_those_that_it_has(command, name):
    having = {"measure": ["paper"], "evaluate": ["paper"]}.get(command, [*sorted(PAPER), "tiny"])
    assert preset_names(command) == having
    if name in having:
        assert preset_settings(name, command)
        return
    with pytest.raises(UserError, match=f"'{name}'.*: choose from {', '.join(having)}$"):
        preset_settings(name, command)


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


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(files, tmp_path):
    words = ["--save-steps", "1", "--max-steps", "40"]
    assert dcr(files, tmp_path / "whole", *words) == 0
    call = [sys.executable, "-c", "import sys; from ntkprobe.cli import main; main(sys.argv[1:])"]
    record = ["--config", tmp_path / "whole/training.yaml", "--output-dir", tmp_path / "cut"]
    started = subprocess.Popen([*call, "train", "dcr", *map(str, record)])
    while not (tmp_path / "cut/checkpoint-5").exists():
        assert started.poll() is None
        time.sleep(0.002)
    started.kill()
    assert started.wait() == -signal.SIGKILL and not (tmp_path / "cut/final").exists()
    assert main(["train", "dcr", *map(str, record)]) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
