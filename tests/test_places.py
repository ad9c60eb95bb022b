"""Where measurements go by default is one rule, whoever asks."""

from pathlib import Path

import pytest

from ntkprobe.cli import main
from ntkprobe.places import measurements_beside, measurements_of, run_measured_in


@pytest.mark.parametrize("named", ["run", "./run", "run/"])
def test_the_measurements_of_a_run_lie_beside_it(named, tmp_path, monkeypatch):
    (tmp_path / "run/inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert measurements_beside(Path(named)) == Path("run-ntk")
    assert measurements_beside(Path(named), "scans") == Path("run-scans-ntk")
    for folder, name in ((tmp_path / "run", "."), (tmp_path / "run/inner", "..")):
        monkeypatch.chdir(folder)
        assert measurements_beside(Path(name)) == tmp_path / "run-ntk"


def test_the_name_of_a_run_is_found_again():
    assert run_measured_in(Path(measurements_of("stl"))) == "stl"
    assert run_measured_in(Path("ntk")) == "ntk" and run_measured_in(Path("stl")) == "stl"


def test_doctor_looks_where_measure_writes_to(tmp_path, capsys):
    (tmp_path / "real/run/checkpoint-10").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "real/run")
    (tmp_path / "run-ntk").mkdir()
    assert main(["doctor", "--ckpt-dir", str(tmp_path / "run")]) == 0
    assert f"GB in {tmp_path / 'run-ntk'}" in capsys.readouterr().out
