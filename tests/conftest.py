"""Fixtures that every test file may use."""

import gc
import os

import pytest
import shape_checks
import torch

shape_checks.install()
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_finish() -> None:
    """Leave what was imported to no collection: it stays, and is most of what there is to search.

    Training asks for a collection at its end, and each would go through all of it.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Check shape annotations anew in every test."""
    shape_checks.begin_test()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Compute single-threaded: the models are tiny, and tests then depend on no machine."""
    torch.set_num_threads(1)
