"""Settings of `ntkprobe train`: what presets and files say, and what is typed."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from train_calls import dcr

from ntkprobe.cli import main
from ntkprobe.cli._train_settings import configured, resolved
from ntkprobe.errors import UserError
from ntkprobe.presets.settings import preset_about, preset_names, preset_settings
from ntkprobe.training.dcr import DCRConfig
from ntkprobe.training.sft import SFTConfig

PAPER = ("qwen2.5-1.5b", "qwen2.5-7b", "llama-3-8b")


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
