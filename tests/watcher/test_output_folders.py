"""Which folders take measurements, and what a call that measured nothing leaves in them."""

import pytest
from evaluated import evaluate
from tiny_runs import contents, lora_run, measure_command

from ntkprobe import Trajectory
from ntkprobe.attribution.pair_blocks import settle

QUICK = ["--only", "kernel", "--estimator", "dense", "--no-verify"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return lora_run(tmp_path_factory.mktemp("source"), steps=(10,))


def evaluation(folder):
    evaluate(folder, {"xstest": {"kinds": "s"}}, benchmarks={}, model={}, answers={})


def attribution(folder):
    record = {"settings": {}, "prompts": "digest", "checkpoints": {}, "weights": {}}
    settle(folder / "run.json", record, what="the attribution", instead="")


@pytest.mark.parametrize("write", [evaluation, attribution])
@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_the_folder_of_another_command_is_refused_and_stays_as_it_was(
    write, flags, run, tmp_path, capsys
):
    write(tmp_path / "out")
    before = contents(tmp_path / "out")
    assert measure_command(run, tmp_path, *QUICK, *flags) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == f"ntkprobe: {tmp_path}/out is no measurement's folder: give another --output-dir"
    assert contents(tmp_path / "out") == before


def test_a_call_that_measured_nothing_settles_nothing(run, tmp_path, capsys):
    two = ["--per-group", "1", "--top-k", "100000"]
    assert measure_command(run, tmp_path, *QUICK, *two) == 2
    assert "nothing could be measured" in capsys.readouterr().err
    assert measure_command(run, tmp_path, *QUICK, "--top-k", "2") == 0
    found = Trajectory(tmp_path / "out")
    assert found.settings["kernel"]["top_k"] == 2
    assert found.prompts["in_kernel"].sum() == 6 and len(found.kernel()) == 2 * 36
    assert measure_command(run, tmp_path, *QUICK, "--top-k", "3") == 2
    assert "was measured with kernel.top_k = 2, now it is 3" in capsys.readouterr().err
