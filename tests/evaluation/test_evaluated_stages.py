"""Named models evaluated into one folder: their order, their templates, and one that fails."""

import json

import pytest
from evaluated import evaluate as write_evaluation

from ntkprobe.cli import main
from ntkprobe.evaluation.results import Evaluation, evaluations_in
from ntkprobe.tables import find_evaluations, make_table
from ntkprobe.tiny import model_path

QUICK = ["--benchmark", "tiny", "--limit", "2", "--max-new-tokens", "3", "--device", "cpu"]


def stages(folder, *words):
    named = [word for one in words for word in ("--stage", one)]
    return main(["evaluate", *named, *QUICK, f"--output-dir={folder}"])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages") / "e"
    base = f"z base={model_path()}"
    assert main(["evaluate", "--stage", base, "--stage", f"a sft={model_path()}", *QUICK,
                 "--template", "z base=plain", f"--output-dir={folder}"]) == 0  # fmt: skip
    return folder


def test_each_stage_has_a_folder_and_a_label_and_they_keep_their_order(evaluated):
    assert [path.name for path in evaluations_in(evaluated)] == ["z base", "a sft"]
    assert list(find_evaluations([evaluated])) == ["z base", "a sft"]
    rows = make_table([evaluated]).numbers["row"]
    assert list(dict.fromkeys(rows)) == ["z base", "a sft"]


def test_a_table_marks_a_change_of_template_and_no_other(evaluated, tmp_path):
    record = Evaluation(evaluated / "z base").settings["answers"]
    assert record["resolved_template"] == "plain"
    assert any(
        "Templates differ (z base plain, a sft chat" in n for n in make_table([evaluated]).notes
    )
    same = {"tiny": {"kinds": "sx", "xstest_prefixes": "cr"}}
    for name in ("one", "two"):
        about = {"label": name, "answers": {"resolved_template": "chat#1"}}
        write_evaluation(tmp_path / name, same, **about)
    assert not any("Templates" in note for note in make_table([tmp_path]).notes)


def test_a_stage_that_cannot_be_loaded_leaves_the_others_and_fails_the_call(tmp_path, capsys):
    assert stages(tmp_path / "e", f"bad={tmp_path}/none", f"base={model_path()}") == 1
    printed = capsys.readouterr()
    assert "bad failed: no " in printed.err
    assert "1 stage in" in printed.out and "1 failed" in printed.out
    assert json.loads((tmp_path / "e/stages.json").read_text())["stages"] == ["bad", "base"]
    assert list(find_evaluations([tmp_path / "e"])) == ["base"]


def test_other_stages_in_the_same_folder_are_refused_and_more_are_not(evaluated, capsys):
    before = (evaluated / "stages.json").read_bytes()
    assert stages(evaluated, f"a sft={model_path()}") == 2
    assert "has the stages z base, a sft, now they are a sft" in capsys.readouterr().err
    assert (evaluated / "stages.json").read_bytes() == before


def test_flips_takes_the_folder_of_stages(evaluated, capsys):
    folders = [str(evaluated / name) for name in ("z base", "a sft")]
    assert main(["flips", *folders]) == 0
    wanted = capsys.readouterr().out
    assert main(["flips", str(evaluated), "--from", "z base", "--to", "a sft"]) == 0
    assert capsys.readouterr().out == wanted
    assert main(["flips", str(evaluated), "--from", "b"]) == 2
    assert "no stage 'b': choose from ['z base', 'a sft']" in capsys.readouterr().err


def test_options_of_one_model_do_not_go_with_stages(tmp_path, capsys):
    call = ["evaluate", "--stage", f"a={model_path()}", *QUICK, f"--output-dir={tmp_path}/e"]
    assert main([*call, "--label", "x"]) == 2
    assert "--label is about one model" in capsys.readouterr().err
    assert main([*call, "--template", "b=plain"]) == 2
    assert "no stage is called 'b'" in capsys.readouterr().err
