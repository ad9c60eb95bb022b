"""Models that publish their training as revisions, fetched as a run; the hub is stood in for."""

import shutil
from pathlib import Path

import pytest
from tiny_runs import full_run, write_prompts

from ntkprobe import Trajectory, UserError
from ntkprobe.checkpoints.revisions import fetch_revisions, step_of
from ntkprobe.cli import main


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stand in for the hub: two revisions, and what was asked of it."""
    run = full_run(tmp_path / "published", steps=(10, 20))
    asked = []

    def download(model, *, revision, local_dir, allow_patterns):
        asked.append((model, revision))
        assert not any(pattern.endswith((".bin", ".py")) for pattern in allow_patterns)
        source = run / f"checkpoint-{step_of(revision)}"
        if not source.is_dir():
            raise ConnectionError(f"404: {revision}\nmore")
        shutil.copytree(source, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_revisions_are_measured_as_the_checkpoints_of_a_run(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = str(write_prompts(tmp_path / "prompts.csv"))
    call = ["measure", "--model", "somebody/pythia", "--prompts", prompts, "--no-generate"]
    assert main([*call, "--revisions", "step10,step20", "--output-dir", "out"]) == 0
    assert hub == [("somebody/pythia", "step10"), ("somebody/pythia", "step20")]
    assert sorted(Trajectory("out").kernel()["step"].unique()) == [10, 20]


@pytest.mark.parametrize(
    ("name", "step"),
    [("step1000", 1000), ("stage1-step500-tokens2B", 500), ("iter_0007", 7), ("step-3", 3)],
)
def test_a_revisions_name_tells_its_step(name, step):
    assert step_of(name) == step


@pytest.mark.parametrize(
    ("revisions", "message"),
    [
        (["main"], "'main' tells no step"),
        (["step10", "iter10"], "of one step"),
        (["step30"], "cannot fetch m at step30: 404: step30$"),
    ],
)
def test_revisions_that_cannot_be_had_are_one_line(hub, tmp_path, revisions, message):
    with pytest.raises(UserError, match=message):
        fetch_revisions("m", revisions, tmp_path / "run")


def test_a_revision_of_pickles_alone_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *_, local_dir, **__: Path(local_dir).mkdir(parents=True),
    )
    with pytest.raises(UserError, match="has no safetensors"):
        fetch_revisions("m", ["step1"], tmp_path / "run")


def test_revisions_of_a_folder_are_refused(tmp_path, capsys):
    prompts = str(write_prompts(tmp_path / "prompts.csv"))
    call = ["measure", "--model", str(tmp_path), "--prompts", prompts, "--revisions", "step1"]
    assert main(call) == 2
    assert "of a model on the hub" in capsys.readouterr().err
