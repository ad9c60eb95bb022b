"""`measure --dry-run` counts what the same command then measures."""

import re
import shutil

import pytest
from tiny_runs import age, full_run, lora_run, measure_command, save_base

QUICK = ["--no-verify", "--no-generate", "--estimator", "dense", "--top-k", "2"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    lora_run(root, steps=(10, 20))
    full_run(root / "full", steps=(10,))
    return root


@pytest.fixture(scope="module")
def measured_once(source, tmp_path_factory):
    place = tmp_path_factory.mktemp("measured")
    assert measure_command(source / "run", place, *QUICK, "--only", "refusal") == 0
    return place / "out"


@pytest.fixture
def measured(measured_once, tmp_path):
    return shutil.copytree(measured_once, tmp_path / "out")


def numbers(run, place, capsys, *flags):
    """How many a dry run says it is, and how many the same command measures."""
    assert measure_command(run, place, *QUICK, *flags, "--dry-run") == 0
    said = re.search(r"(\d+) to measure", capsys.readouterr().out)
    assert measure_command(run, place, *QUICK, *flags) == 0
    done = re.search(r"(\d+) new", capsys.readouterr().out)
    return int(said[1]), int(done[1])


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (["--only", "refusal"], 0),
        (["--only", "refusal", "--overwrite"], 3),
        (["--only", "kernel,refusal"], 3),
        (["--only", "kernel", "--steps", "0:10"], 2),
        (["--only", "kernel", "--parameters", "lora"], 2),
    ],
)
def test_a_dry_run_counts_the_tables_that_are_missing(flags, count, source, measured, capsys):
    assert numbers(source / "run", measured.parent, capsys, *flags) == (count, count)


def test_a_dry_run_counts_a_lost_table_and_a_checkpoint_written_anew(
    source, measured, tmp_path, capsys
):
    run = shutil.copytree(source / "run", tmp_path / "again" / "run")
    shutil.copytree(source / "base", tmp_path / "again" / "base")
    (measured / "refusal/step-00000000.parquet").unlink()
    adapter = "adapter_model.safetensors"
    shutil.copyfile(run / "checkpoint-20" / adapter, run / "checkpoint-10" / adapter)
    (run / "checkpoint-10" / "trainer_state.json").touch()
    assert numbers(run, tmp_path, capsys, "--only", "refusal") == (2, 2)


def test_a_dry_run_counts_a_named_base_and_checkpoints_that_are_yet_to_settle(
    source, tmp_path, capsys
):
    run, base = shutil.copytree(source / "full", tmp_path / "run"), save_base(tmp_path / "base")
    (run / "checkpoint-10" / "trainer_state.json").unlink()
    flags = ["--only", "refusal", "--model", base]
    assert measure_command(run, tmp_path, *QUICK, *flags, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "the base, step 0: " in said and "2 to measure" in said
    age(run, 7200)
    assert numbers(run, tmp_path, capsys, *flags) == (2, 2)


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_dry_run_refuses_what_the_command_refuses(flags, source, measured, capsys):
    other = ["--only", "refusal", "--phrases", "xstest21"]
    assert measure_command(source / "run", measured.parent, *QUICK, *other, *flags) == 2
    assert "refusal.phrases" in capsys.readouterr().err
    inside = ["--output-dir", source / "run"]
    assert measure_command(source / "run", measured.parent, *QUICK, *inside, *flags) == 2
    assert "lies inside the run" in capsys.readouterr().err
