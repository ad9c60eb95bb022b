"""Runs of `ntkprobe train`: recorded and replayed, interrupted, overwritten, out of space."""

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
import yaml
from safetensors.torch import load_file
from train_calls import dcr, sft

from ntkprobe.cli import main


def weights(folder: Path):
    return load_file(next((folder / "final").glob("*model.safetensors")))


def same(a, b) -> bool:
    return all(a[name].equal(b[name]) for name in a) and a.keys() == b.keys()


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
