"""What is missing, what limits the numbers and what is wrong is said."""

import json
from pathlib import Path

import pytest
from measured_runs import write_run
from report_pages import unpacked

from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.evaluation.folder import EvaluationFolder
from ntkprobe.report import make_report
from ntkprobe.storage import SCHEMA_VERSION
from ntkprobe.watcher.folder import MeasurementFolder


@pytest.mark.parametrize(
    ("table", "keys", "command"),
    [
        ("kernel", {"kernel", "layers", "tokens"}, "--only kernel"),
        ("refusal", {"refusal", "tokens"}, "--only refusal"),
        ("parts", {"layers", "tokens"}, "--by layer"),
        ("influence", {"pushes", "tokens"}, "--influence refusal"),
    ],
)
def test_a_missing_table_is_none_and_its_command_is_told(table, keys, command, tmp_path):
    folder = write_run(tmp_path / "a-ntk")
    for path in (folder / table).iterdir():
        path.unlink()
    found = unpacked(make_report([folder]).html)["sets"][0]["runs"][0]
    assert {
        key for key in ("kernel", "refusal", "layers", "pushes", "tokens") if not found[key]
    } == keys
    assert set(found["missing"]) == keys
    assert any(command in line and "ntkprobe measure" in line for line in found["missing"].values())


def test_rates_without_answers_are_missing_and_not_zero(tmp_path):
    folder = write_run(tmp_path / "a-ntk", answers=False)
    found = unpacked(make_report([folder]).html)["sets"][0]["runs"][0]
    assert found["refusal"]["rates"] is None and (found["refusal"]["refuses"] == 255).all()
    assert "rates" in found["missing"]


def test_cautions_name_what_limits_the_numbers(tmp_path):
    for name, told in (("a", {"estimator": "finite_difference", "top_k_at": "each"}), ("b", {})):
        folder = write_run(tmp_path / f"{name}-ntk")
        settings = {"schema_version": 1, "kernel": told, "prompts": {"template": "raw"}}
        (folder / "run.json").write_text(json.dumps(settings))
    said = " ".join(unpacked(make_report([tmp_path]).html)["sets"][0]["cautions"])
    for words in (
        "approximated by finite_difference",
        "raw",
        "own most probable",
        "do not compare",
    ):
        assert words in said
    assert "constructed world" not in said


def test_the_demos_page_says_that_its_world_is_constructed():
    demo = Path(__file__).parents[2] / "figures" / "demo"
    page = make_report([demo])
    assert len(page.html) < 6e6
    assert "constructed world" in unpacked(page.html)["sets"][0]["cautions"][0]


def test_both_writers_formats_are_the_one_that_is_read(tmp_path):
    measured, evaluated = MeasurementFolder(tmp_path / "m"), EvaluationFolder(tmp_path / "e")
    measured.adopt({"model": {"base_identity": None}}, {})
    evaluated.adopt({"model": {}, "answers": {}, "benchmarks": {}})
    assert {each.record["schema_version"] for each in (measured, evaluated)} == {SCHEMA_VERSION}


def test_another_format_is_refused_with_both_numbers(tmp_path):
    folder = write_run(tmp_path / "a-ntk")
    (folder / "run.json").write_text('{"schema_version": 7}')
    with pytest.raises(UserError, match="has format 7, this ntkprobe reads format 1"):
        make_report([folder])


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_damaged_record_is_one_clear_line(text, tmp_path):
    folder = write_run(tmp_path / "a-ntk")
    (folder / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run.json (is damaged|holds no settings)"):
        make_report([folder])


def test_a_folder_with_nothing_is_named_with_the_commands(tmp_path, capsys):
    assert main(["report", str(tmp_path), f"--output-file={tmp_path / 'r.html'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ntkprobe: no measurements and no evaluation in {tmp_path}")
    assert "ntkprobe measure" in said and not (tmp_path / "r.html").exists()


def test_a_run_without_a_step_so_far_is_told(tmp_path):
    folder = write_run(tmp_path / "a-ntk")
    for path in folder.glob("*/step-*"):
        path.unlink()
    with pytest.raises(UserError, match="no checkpoint has been measured"):
        make_report([folder])


def test_two_runs_of_one_name_are_refused(place):
    with pytest.raises(UserError, match="NAME=FOLDER"):
        make_report([place / "stl-ntk", place])
