"""What `ntkprobe evaluate` refuses: mistakes, and folders of other settings, models or kinds."""

import json
from pathlib import Path

import pytest
import training_world as world
from evaluate_calls import QUICK, TINY, mistake

from ntkprobe.evaluation.results import Evaluation

# Folders


def test_another_setting_in_the_same_folder_is_refused_with_both_values(started, call, answers):
    for flags, words in [
        (["--max-new-tokens", "7"], "answers.max_new_tokens = 6, now it is 7"),
        (["--limit", "2"], "benchmarks.tiny.prompts = 8, now it is 4"),
        (["--temperature", "1"], "answers.temperature = 0.0, now it is 1.0"),
        (["--dtype", "float64"], "model.dtype = 'float32', now it is 'float64'"),
    ]:
        assert words in mistake(call(*TINY, *QUICK, *flags))
    assert len(answers()) == 8


def test_what_counts_of_a_template_is_what_it_comes_to(started, call):
    assert call(*TINY, *QUICK, "--template", "chat")[0] == 0
    assert "answers.resolved_template = 'chat#" in mistake(call(*TINY, *QUICK, "--template", "raw"))


def test_another_tokenizer_of_the_same_weights_is_refused(call, tmp_path):
    model = Path(world.saved(tmp_path / "model"))
    given = ["--model", model, *TINY[2:], *QUICK]
    assert call(*given)[0] == 0
    path = model / "tokenizer.json"
    before = path.read_text()
    whole = json.loads(before)
    whole["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(whole))
    assert "answers.probe_tokens = " in mistake(call(*given))
    path.write_text(before)
    assert call(*given)[1].startswith("0 new answers")


def test_a_mistake_beside_overwrite_costs_no_answer(started, call, answers):
    gone = "http://127.0.0.1:9/v1"
    for flags in (
        [*TINY, "--judge", f"llm:base_url={gone},model=j"],
        ["--base-url", gone, "--model", "m", "--benchmark", "tiny"],
        [*TINY, "--template", "absent.jinja"],
    ):
        mistake(call(*flags, *QUICK, "--overwrite"))
    assert len(answers()) == 8


def test_another_model_is_refused_and_overwrite_begins_anew(started, call, answers, tmp_path):
    other = ["--model", world.saved(tmp_path / "other"), *TINY[2:], *QUICK]
    assert "model.base.identity" in mistake(call(*other))
    before = answers()["answer"].tolist()
    assert call(*other, "--overwrite")[1].startswith("8 new answers")
    assert answers()["answer"].tolist() != before


def test_abilities_of_another_model_do_not_stand_beside_new_answers(started, call, tmp_path):
    folder = tmp_path / "e"
    own = json.loads((folder / "run.json").read_text())["model"]
    task = {"mmlu": [{"metric": "acc", "value": 0.5, "stderr": None, "n": 9}]}

    def write_abilities():
        (folder / "abilities.json").write_text(json.dumps({"model": own, "tasks": task}))

    write_abilities()
    call(*TINY, *QUICK, "--overwrite")
    assert len(Evaluation(folder).abilities()) == 1  # those of the same model stay
    other = ["--model", world.saved(tmp_path / "other"), *TINY[2:], *QUICK]
    call(*other, "--overwrite")
    assert not (folder / "abilities.json").exists()
    (folder / "run.json").unlink()
    write_abilities()
    assert "model.base.identity" in mistake(call(*other))


def test_answers_of_a_server_and_of_a_local_model_do_not_mix(started, call, answers):
    gone = ["--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--benchmark", "tiny", *QUICK]
    assert "answers of a local model, and this is a server's" in mistake(call(*gone))
    assert len(answers()) == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kernel": {}}', "is no evaluation's folder"),
        ("{", "is damaged"),
        ('{"schema_version": 2, "benchmarks": {}}', "has format 2, this ntkprobe reads format 1"),
    ],
)
def test_a_folder_of_something_else_is_refused(call, tmp_path, text, words):
    (tmp_path / "e").mkdir()
    (tmp_path / "e/run.json").write_text(text)
    assert words in mistake(call(*TINY, *QUICK))


# Mistakes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "no benchmark: give --benchmark"),
        (["--benchmark", "tiny"], "no model: give --model"),
        (["--benchmark", "xtest"], "no benchmark 'xtest': choose from tiny"),
        ([*TINY, "--judge", "oracle"], "no 'oracle' in ntkprobe.evaluation.judges"),
        ([*TINY, "--judge", "llm"], "needs base_url"),
        ([*TINY, "--judge", "prefixes"], "write prefixes:file=FILE"),
        ([*TINY, "--judge", "prefixes:file=absent.txt"], "no such file"),
        ([*TINY, "--phrases", "absent.txt"], "--phrases absent.txt: no such file"),
        ([*TINY, "--phrases", "paper31", "--phrases", "paper31"], "two sets of --phrases"),
        ([*TINY, "--phrases", "paper31", "--no-judge"], "leave out --no-judge"),
        ([*TINY, "--judge", "or_bench_strings:kin=x"], "sets 'kin': it has ['family']"),
        ([*TINY, "--judge", "scans_strings", "--judge", "scans_strings"], "two judges are called"),
        ([*TINY, "--limit", "0"], "--limit 0"),
        ([*TINY, "--batch-size", "few"], "--batch-size 'few'"),
        ([*TINY, "--temperature", "-1"], "--temperature -1"),
        ([*TINY, "--temperature", "inf"], "--temperature inf"),
        ([*TINY, "--adapter", "absent"], "absent is no adapter"),
        ([*TINY, "--mitigation", "absent"], "absent holds no mitigation"),
        ([*TINY, "--base-url", "http://h/v1", "--adapter", "a"], "--adapter goes with a model"),
        ([*TINY, "--max-new-tokens", "9999"], "exceeds the model's context"),
        ([*TINY, "--benchmark", "tiny"], "two benchmarks are called 'tiny'"),
        (["--model", "/absent", "--benchmark", "tiny"], "no model at '/absent'"),
    ],
)
def test_a_mistake_is_one_clear_line(call, flags, words):
    assert words in mistake(call(*flags))
