"""Which folders take measurements, and what a call that measured nothing leaves in them."""

import pytest
from evaluated import evaluate
from tiny_runs import contents, lora_run, measure_command

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
