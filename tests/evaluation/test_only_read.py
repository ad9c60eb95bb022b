"""Folders that hold a model are only read, whatever `--output-dir` says."""

import shutil
from pathlib import Path

import pytest

from ntkprobe.cli import main
from ntkprobe.tiny import model_path

QUICK = ["--benchmark", "tiny", "--limit", "1", "--max-new-tokens", "2", "--device", "cpu"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(model_path(), tmp_path / "run/final")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    return tmp_path


def evaluated(folder: str, *words: str) -> int:
    return main(["evaluate", *words, *QUICK, f"--output-dir={folder}"])


@pytest.mark.parametrize("place", ["run/final", "run/final/evaluation", "adapter"])
def test_nothing_is_written_into_the_folder_of_a_model(
    place: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run)
    before = sorted(run.rglob("*"))
    model = ["--model", "run/final", *(["--adapter", place] if place == "adapter" else [])]
    assert evaluated(place, *model) == 2
    assert f"{place} lies inside the model" in capsys.readouterr().err
    assert main(["abilities", *model, "--output-dir", place, "--device", "cpu"]) == 2
    assert f"{place} lies inside the model" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


def test_stages_are_only_read_and_a_run_may_hold_their_evaluations(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run)
    before = sorted(run.rglob("*"))
    assert evaluated("run/final", "--stage", "sft=run/final") == 2
    assert "lies inside the model run/final" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before
    assert evaluated("run", "--stage", "final=run/final") == 2  # its folder would be the model's
    assert not (run / "run/final/answers").exists()
    assert evaluated("run/evaluation", "--stage", "sft=run/final") == 0
