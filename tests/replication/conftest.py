"""The published files, written once for all tests of the replication."""

import pytest
from replication_data import write_published


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published"))
