"""Steps that are asked for and not there, and checkpoints that never became whole, are named."""

import shutil

import pytest
from tiny_runs import lora_run, measure_command

QUICK = ["--only", "refusal", "--no-generate", "--no-verify"]
FOLLOW = ["--follow", "--poll-interval", "0.05", "--idle-timeout", "0.2"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return lora_run(tmp_path_factory.mktemp("source"), steps=(10, 20))


@pytest.fixture
def run(source, tmp_path):
    return shutil.copytree(source, tmp_path / "run")


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_steps_that_the_run_does_not_have_are_refused_with_those_that_it_has(
    flags, run, tmp_path, capsys
):
    assert measure_command(run, tmp_path, *QUICK, "--steps", "5:6", *flags) == 2
    said = "no checkpoint of the steps asked for: the run has [0, 10, 20]"
    assert last_line(capsys) == f"ntkprobe: {said}"
    assert not (tmp_path / "out").exists()


def test_a_worker_that_has_no_checkpoint_is_no_mistake(run, tmp_path, capsys):
    assert measure_command(run, tmp_path, *QUICK, "--steps", "10", "--shard", "0/7") == 0
    assert measure_command(run, tmp_path, *QUICK, "--steps", "30", *FOLLOW) == 0
    assert capsys.readouterr().out.count("0 steps in") == 2


def test_following_names_checkpoints_that_never_became_whole(run, tmp_path, capsys):
    (run / "checkpoint-20" / "trainer_state.json").unlink()
    assert measure_command(run, tmp_path, *QUICK, *FOLLOW) == 0
    assert last_line(capsys).startswith("not measured: checkpoint-20 is unmarked: ")
    (run / "checkpoint-10" / "trainer_state.json").unlink()
    assert measure_command(run, tmp_path, *QUICK, *FOLLOW, "--overwrite") == 2
    said = last_line(capsys)
    assert "nothing could be measured: checkpoint-10 is unmarked" in said and "(and 1 more)" in said
