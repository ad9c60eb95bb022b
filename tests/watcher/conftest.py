"""Two runs of the tiny model and the measurements of one, made once; every test has its copies."""

import shutil

import pytest
from tiny_runs import full_run, lora_run
from watched_runs import measure


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    lora_run(root, steps=(10, 20))
    full_run(root / "full", steps=(10, 20))
    return root


@pytest.fixture
def run(source, tmp_path):
    shutil.copytree(source / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def measured_once(source):
    measure(source / "run", source / "measured")
    return source / "measured"


@pytest.fixture
def measured(measured_once, tmp_path):
    return shutil.copytree(measured_once, tmp_path / "out")
