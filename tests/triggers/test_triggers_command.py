"""`ntkprobe triggers`: what it writes, asks for and refuses."""

import json

import pytest

from ntkprobe import tiny
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.cli import main
from ntkprobe.cli.triggers import TriggerOptions
from ntkprobe.training.data import read_pairs


def command(tmp_path, *more: str) -> int:
    words = ["triggers", "--harmful", str(tiny.safe_path()), "--limit", "6", "--device", "cpu"]
    return main([*words, "--output-file", str(tmp_path / "t.jsonl"), *more])


@pytest.mark.slow
def test_what_the_command_writes_is_what_the_recipe_reads(tmp_path, capsys):
    assert command(tmp_path, "--model", str(tiny.model_path()), "--max-new-tokens", "16") == 0
    seen = capsys.readouterr()
    assert "answers: 5 answered, 0 refused" in seen.err
    assert "next: ntkprobe train sft" in seen.out
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"trigger", "source", "score", "extractor", "response"}
    assert [p.prompt for p in read_pairs(tmp_path / "t.jsonl")] == [r["trigger"] for r in rows]
    call = ["train", "sft", "--preset", "tiny", "--recipe", "refusal_trigger", "--max-steps", "1"]
    call += ["--triggers", str(tmp_path / "t.jsonl"), "--output-dir", str(tmp_path / "run")]
    assert main([*call, "--device", "cpu", "--prefill", "Here is a short outline."]) == 0
    assert "200 triggers, 200 safe pairs" in capsys.readouterr().err


def test_influence_is_taken_from_the_command_line_too(tmp_path, capsys):
    benign = tmp_path / "benign.csv"
    benign.write_text("prompt,group\nHow do I kill a python process?,seemingly_toxic\n")
    more = ["--extractor", "influence", "--model", str(tiny.model_path()), "--limit", "2"]
    assert command(tmp_path, *more, "--benign", str(benign), "--max-new-tokens", "4") == 0
    assert "influence: " in capsys.readouterr().err
    assert not list(tmp_path.glob(".t.jsonl*"))


def test_a_models_name_on_the_hub_is_asked_for_there_by_the_model_and_the_tokenizer(
    tmp_path, monkeypatch
):
    model, tokenizer = load_model(str(tiny.model_path())), load_tokenizer(str(tiny.model_path()))
    asked = []
    monkeypatch.setattr(
        "ntkprobe.checkpoints.load_model", lambda name, _: asked.append(name) or model
    )
    monkeypatch.setattr(
        "transformers.AutoTokenizer.from_pretrained",
        lambda name, **how: asked.append((name, how["local_files_only"])) or tokenizer,
    )
    assert command(tmp_path, "--model", "someone/model", "--max-new-tokens", "4") in (0, 2)
    assert asked == ["someone/model", ("someone/model", False)]


def test_a_wrong_model_does_not_bind_what_was_found_without_one(tmp_path, capsys):
    assert command(tmp_path, "--model", str(tmp_path / "none")) == 2
    assert "no model at" in capsys.readouterr().err
    assert (tmp_path / ".t.jsonl.part").exists()
    assert command(tmp_path, "--dtype", "float64", "--template", "raw") == 0
    llm, influence = (
        TriggerOptions(output_file=tmp_path, extractor=e) for e in ("llm", "influence")
    )
    assert "model" in influence.recorded() and not {"model", "dtype"} & set(llm.recorded())


def test_triggers_without_answers_say_so(tmp_path, capsys):
    assert command(tmp_path) == 0
    assert "no answers yet" in capsys.readouterr().out
    assert command(tmp_path) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--extractor", "none"], "no 'none' in ntkprobe.triggers.extractors"),
        (["--extractor", "llm"], "needs a server: give --base-url and --llm"),
        (["--extractor", "influence"], "no model: give --model"),
        (["--words", "/nowhere.yaml"], "no list of words"),
        (["--output-file", "t.csv"], "ends in .jsonl"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, more, words):
    assert command(tmp_path, *more) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_less_than_one_prompt_is_refused(tmp_path, capsys, limit):
    words = ["triggers", "--harmful", str(tiny.measure_path()), "--limit", str(limit)]
    assert main([*words, "--output-file", str(tmp_path / "t.jsonl")]) == 2
    assert capsys.readouterr().err == f"ntkprobe: --limit {limit}: give 1 or more\n"
    assert not list(tmp_path.iterdir())
