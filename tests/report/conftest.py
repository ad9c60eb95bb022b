"""Two runs and an evaluation to report on, written once for all tests of the report."""

import pytest
from evaluated import evaluate
from measured_runs import write_run

from ntkprobe import Trajectory


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "stl-ntk")
    write_run(folder / "dcr-stl-ntk", cross=0.1, final=0.0)
    evaluate(
        folder / "evals" / "stl",
        {"own": {"kinds": "ssx", "xstest_prefixes": "rcr", "other": "rcc"}},
        label="STL",
    )
    return folder


@pytest.fixture(scope="session")
def run(place):
    return Trajectory(place / "stl-ntk")
