"""Steps that are asked for and not there, and checkpoints that never became whole, are named."""

import shutil

import pytest
from tiny_runs import full_run, lora_run, measure_command

from ntkprobe.cli import main

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


ADAPTERS_OWN = {
    "kernel": ["--only", "kernel", "--parameters", "lora"],
    "influence": [
        "--only",
        "influence",
        "--influence",
        "refusal",
        "--influence-parameters",
        "lora",
    ],
}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("what", ADAPTERS_OWN)
def test_what_is_an_adapters_own_cannot_be_measured_of_the_base_alone(
    what, dry, run, tmp_path, capsys
):
    (tmp_path / "pairs.csv").write_text("prompt,response\nhow do i,sure\n")
    flags = [*ADAPTERS_OWN[what], "--no-verify", *dry]
    flags += ["--updated", tmp_path / "pairs.csv"] if what == "influence" else []
    assert measure_command(run, tmp_path, *flags, "--steps", "0") == 2
    assert last_line(capsys).endswith(
        "the run has [10, 20]; what is asked for is an adapter's, and the base, step 0, has none"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_kernel_over_an_adapter_needs_a_checkpoint_that_has_one(dry, source, tmp_path, capsys):
    full = full_run(tmp_path / "full", steps=(10,))
    over_adapter = [*ADAPTERS_OWN["kernel"], "--no-verify", *dry]
    assert measure_command(full, tmp_path, *over_adapter) == 2
    assert last_line(capsys).endswith(f"and no checkpoint of {full} that is chosen has one")
    alone = ["--model", source.parent / "base", "--output-dir", tmp_path / "out"]
    words = ["measure", *alone, "--prompts", tmp_path / "prompts.csv", *over_adapter]
    assert main([str(word) for word in words]) == 2
    assert "is measured without one: give --ckpt-dir" in last_line(capsys)
    assert not (tmp_path / "out").exists()
