"""A saved random model, once for all tests of training; none of them changes it."""

import pytest
import training_world as world


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    return world.saved(tmp_path_factory.mktemp("base"))
