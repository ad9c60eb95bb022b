"""A measurement says where its prompts are others than those that the run was trained on."""

import json

import pytest
from tiny_runs import TEXTS, lora_run

from ntkprobe import PromptSet
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.prompts.templates import RAW, Template
from ntkprobe.watcher import MeasureSettings, RefusalSettings, measure_run
from ntkprobe.watcher.training_record import differences_from_training

CHAT = Template("chat", day="2026-03-02")


def recorded(folder, settings="system: null\n", **data):
    folder.mkdir(exist_ok=True)
    (folder / "training.json").write_text(json.dumps({"data": data}))
    (folder / "training.yaml").write_text(settings)
    return folder


@pytest.mark.parametrize(
    ("data", "settings", "template", "words"),
    [
        ({"template": "llama-3"}, "system: null\n", RAW, ["'llama-3'", "'raw'"]),
        (
            {"template": "chat", "template_date": "2026-03-01"},
            "{}",
            CHAT,
            ["2026-03-01", "2026-03-02"],
        ),
        ({"template": "raw"}, "system: Be kind\n", RAW, ["'Be kind'", "without it"]),
    ],
)
def test_other_prompts_than_those_trained_on_are_said(tmp_path, data, settings, template, words):
    run = recorded(tmp_path / "run", settings, **data)
    (run / "checkpoint-10").mkdir()
    for place in (run, run / "checkpoint-10"):
        (line,) = differences_from_training(place, template)
        assert all(word in line for word in words)


def test_the_prompts_that_were_trained_on_are_no_news(tmp_path):
    data = {"template": "chat", "template_date": "2026-03-02"}
    assert differences_from_training(recorded(tmp_path / "run", **data), CHAT) == []
    assert differences_from_training(tmp_path, CHAT) == []  # of another trainer


@pytest.mark.parametrize("text", ["", "[]", '{"data": 3}', "{"])
def test_a_broken_record_says_nothing(tmp_path, text):
    (tmp_path / "training.json").write_text(text)
    (tmp_path / "training.yaml").write_text("a: [")
    assert differences_from_training(tmp_path, CHAT) == []


def test_a_measurement_says_it(tmp_path, capsys):
    run = recorded(lora_run(tmp_path, steps=(10,)), "system: Be kind\n", template="chat")
    how = MeasureSettings(
        kernel=None,
        refusal=RefusalSettings(generate=False),
        load=LoadSettings(device="cpu"),
        verify=False,
    )
    measure_run(PromptSet.from_texts(TEXTS), tmp_path / "out", ckpt_dir=run, settings=how)
    said = capsys.readouterr().err
    assert "trained with the template 'chat'" in said and "'Be kind'" in said
