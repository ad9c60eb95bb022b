"""A model and files to train on, written once for all tests of commands."""

import json
from pathlib import Path

import pytest
import training_world as world


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    world.saved(folder / "base")
    world.prompts().frame().to_csv(folder / "prompts.csv", index=False)
    for name, pairs in (("general", world.general()), ("safe", world.safe())):
        rows = [{"instruction": p.prompt, "input": "", "output": p.response} for p in pairs]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder
