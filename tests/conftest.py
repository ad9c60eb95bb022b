"""Fixtures that every test file may use."""

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Compute single-threaded: the models are tiny, and tests then depend on no machine."""
    torch.set_num_threads(1)
