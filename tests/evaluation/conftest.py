"""Calls of `ntkprobe evaluate`, and one evaluation that is made once for all tests."""

import shutil

import pytest
from evaluate_calls import QUICK, TINY

from ntkprobe.cli import main
from ntkprobe.evaluation.results import Evaluation


@pytest.fixture
def call(tmp_path, capsys):
    """`ntkprobe evaluate`: status, last words, errors."""

    def run(*flags):
        words = ["evaluate", *map(str, flags), f"--output-dir={tmp_path}/e"]
        status = main(words)
        printed = capsys.readouterr()
        return status, printed.out.strip(), printed.err

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of one evaluation of the embedded model, made once."""
    folder = tmp_path_factory.mktemp("finished") / "e"
    assert main(["evaluate", *TINY, *QUICK, f"--output-dir={folder}"]) == 0
    return folder


@pytest.fixture
def started(finished, tmp_path):
    """The same where `call` goes on."""
    shutil.copytree(finished, tmp_path / "e")


@pytest.fixture
def answers(tmp_path):
    return lambda name="tiny": Evaluation(tmp_path / "e").answers(name).set_index("id")
