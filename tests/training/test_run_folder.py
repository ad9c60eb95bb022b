"""Laws of the folder of a training: what --overwrite removes and when, and what is left alone."""

import shutil
from pathlib import Path

import pytest
import training_world as world

from ntkprobe.errors import UserError
from ntkprobe.training.dcr import DCRConfig, train_dcr


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return world.saved(tmp_path_factory.mktemp("base"), num_hidden_layers=2)


def dcr(base, folder, **changes) -> Path:
    settings = {"layer": 1, "per_device_train_batch_size": 8, "max_steps": 1, **changes}
    config = DCRConfig(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **settings)
    return train_dcr(base, world.prompts(), config)


@pytest.fixture
def finished(base, tmp_path) -> Path:
    return dcr(base, tmp_path / "run").parent


def test_overwriting_removes_nothing_before_training_can_begin(base, finished):
    before = sorted(finished.rglob("*"))
    with pytest.raises(UserError, match="layer 99 does not exist"):
        dcr(base, finished, overwrite=True, layer=99)
    assert sorted(finished.rglob("*")) == before


def test_overwriting_removes_the_run_and_no_other_file_of_the_folder(base, finished):
    (finished / "checkpoint-7").mkdir()  # of a longer run before
    (finished / "checkpoint-7-plots").mkdir()
    (finished / "notes.txt").write_text("years of work")
    for file in (finished / "final").iterdir():  # the run is a model, too
        shutil.copy(file, finished)
    dcr(base, finished, overwrite=True, seed=1)
    assert (finished / "notes.txt").exists() and (finished / "checkpoint-7-plots").exists()
    assert (finished / "model.safetensors").exists() and not (finished / "checkpoint-7").exists()


def test_overwriting_that_was_stopped_half_way_goes_on(base, finished, monkeypatch):
    removed = []

    def stopped(path, **_):
        removed.append(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ntkprobe.training.runs.shutil.rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            dcr(base, finished, overwrite=True, seed=1)
    assert removed and dcr(base, finished, overwrite=True, seed=1).is_dir()


def test_a_model_is_not_overwritten_by_its_own_training(base, finished):
    for name in ("final", "checkpoint-1"):
        with pytest.raises(UserError, match="--overwrite would remove"):
            dcr(finished / name, finished, overwrite=True)
    assert (finished / "final/model.safetensors").exists()


def test_a_models_own_folder_is_not_trained_into(tmp_path):
    own = world.saved(tmp_path / "model", num_hidden_layers=2)
    before = sorted(Path(own).iterdir())
    with pytest.raises(UserError, match="holds a model: give another --output-dir"):
        dcr(own, own)
    assert sorted(Path(own).iterdir()) == before
