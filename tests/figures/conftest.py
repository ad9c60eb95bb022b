"""Two runs' measurement folders, once for all tests of figures."""

import pytest
from measured_runs import PAPER_TEXTS, write_run

from ntkprobe.figures import find_runs


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    write_run(place / "stl-ntk", texts=PAPER_TEXTS)
    write_run(place / "dcr-stl-ntk", cross=0.1, final=0.0)
    return place


@pytest.fixture(scope="session")
def runs(folder):
    return find_runs([folder])
