"""`ntkprobe doctor`: what it says is what this machine does."""

import sys
from importlib.metadata import version
from importlib.util import cache_from_source
from pathlib import Path

import pytest
import torch
from tiny_runs import full_run

from ntkprobe.cli import main
from ntkprobe.openmp import WAITING


def told(capsys, *flags):
    assert main(["doctor", *map(str, flags)]) == 0
    return capsys.readouterr().out


def test_doctor_tells_versions_the_device_and_what_attention_supports(capsys):
    out = told(capsys)
    assert f"torch            {version('torch')}" in out and "device" in out
    assert "attention eager  backward and forward mode" in out
    assert "attention sdpa   backward" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="fused attention of the CPU")
def test_doctor_finds_that_fused_attention_has_no_forward_mode(capsys):
    assert "attention sdpa   backward; not forward mode" in told(capsys)


def test_doctor_tells_whether_the_runs_disk_can_link_and_leaves_nothing(capsys, tmp_path):
    full_run(tmp_path / "RUN", steps=(10,))
    before = sorted(tmp_path.rglob("*"))
    out = told(capsys, "--ckpt-dir", tmp_path / "RUN")
    assert "hard links, which take no space" in out and "checkpoint-10: ready" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_doctor_says_of_pickled_weights_that_they_are_there_and_not_read(capsys, tmp_path):
    run = full_run(tmp_path / "RUN", steps=(10, 20))
    for weights in run.rglob("model.safetensors"):
        weights.rename(weights.with_name("pytorch_model.bin"))
    out = told(capsys, "--ckpt-dir", run)
    assert "checkpoint-10: refused (pytorch_model.bin is a pickle" in out
    assert "save_pretrained(safe_serialization=True))\n" in out  # and neither kind nor size
    assert "0 to measure, 2 refused, see above\n" in out
    assert "pins             unknown: the run's weights are of a kind that is not read" in out
    (tmp_path / "NEW/checkpoint-10").mkdir(parents=True)
    assert "the run holds no weights yet" in told(capsys, "--ckpt-dir", tmp_path / "NEW")


def test_doctor_of_a_run_that_is_not_there_is_a_mistake(capsys, tmp_path):
    assert main(["doctor", "--ckpt-dir", str(tmp_path / "no")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_doctor_changes_no_random_number():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    main(["doctor"])
    assert torch.equal(torch.rand(1), expected)


def test_doctor_tells_how_threads_wait(capsys):
    assert f"threads wait     {WAITING}" in told(capsys)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("forbidden", [True, False])
def test_doctor_tells_whether_imports_are_compiled_at_every_start(
    stored, forbidden, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(sys, "dont_write_bytecode", forbidden)
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    if stored:
        file = Path(cache_from_source(torch.__file__))
        file.parent.mkdir(parents=True)
        file.touch()
    assert ("every start compiles" in told(capsys)) == (forbidden and not stored)
