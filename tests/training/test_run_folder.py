"""Laws of the folder of a training: what it holds, what is removed when, what is left alone."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import training_world as world
from transformers import TrainerCallback

from ntkprobe.errors import UserError
from ntkprobe.evaluation.overlap import training_prompts
from ntkprobe.training.contamination import prompts_of_stage_before
from ntkprobe.training.data import Pair
from ntkprobe.training.dcr import DCRConfig, train_dcr
from ntkprobe.training.sft import SFTConfig, train_sft


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


def sft(base, folder, pairs, **changes) -> Path:
    settings = {"n_general": 9, "n_safe": 9, "gradient_accumulation_steps": 1, "max_steps": 1}
    config = SFTConfig(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, **settings | changes
    )
    return train_sft(base, pairs, world.safe(2), config)


def test_prompts_without_room_are_not_among_those_trained_on(base, tmp_path):
    long = Pair("Name colours, and more colours, and so on: " + "red " * 30, "No more.")
    final = sft(base, tmp_path / "stl", [*world.general(3), long], max_length=120)
    asked = {*training_prompts([final]).popitem()[1]}
    assert len(asked) == 5 and not any("more colours" in text for text in asked)
    assert len(pd.read_parquet(tmp_path / "stl/data.parquet")) == 5

    final = dcr(base, tmp_path / "dcr", max_length=44)
    data = pd.read_parquet(tmp_path / "dcr/data.parquet")
    assert 0 < len(data) < len(world.prompts())
    report = json.loads((tmp_path / "dcr/training.json").read_text())["data"]
    assert len(data) + report["too_long"] == len(world.prompts())


@pytest.mark.parametrize("table", [{"x": [1]}, {"prompt": ["Name 0 colours."]}])
def test_data_beside_a_model_that_is_no_run_is_not_the_stage_before(base, tmp_path, table):
    shutil.copytree(base, tmp_path / "model")
    pd.DataFrame(table).to_parquet(tmp_path / "data.parquet")
    assert prompts_of_stage_before(str(tmp_path / "model")) == {}
    (tmp_path / "training.yaml").write_text("stage: sft")
    if "prompt" in table:
        assert [*prompts_of_stage_before(str(tmp_path / "model")).values()] == [table["prompt"]]


@pytest.mark.parametrize(("name", "text"), [("training.yaml", "a: ["), ("training.json", "{")])
def test_a_damaged_record_is_one_line_and_can_be_overwritten(base, finished, name, text):
    (finished / name).write_text(text)
    with pytest.raises(UserError, match=name) as error:
        dcr(base, finished)
    assert "\n" not in str(error.value)
    assert dcr(base, finished, overwrite=True) == finished / "final"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adam_beta1": 2.0}, "Invalid beta"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"save_strategy": "best"}, "metric_for_best_model"),
    ],
)
def test_settings_that_transformers_refuses_are_one_line(base, tmp_path, changes, words):
    with pytest.raises(UserError, match=f"cannot train with these settings: .*{words}") as error:
        dcr(base, tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_an_error_after_the_first_step_is_none_of_settings(base, tmp_path):
    class Fails(TrainerCallback):
        def on_step_end(self, *_, **__):
            raise ValueError("a fault of the callback's own")

    settings = {"layer": 1, "per_device_train_batch_size": 8, "max_steps": 2}
    config = DCRConfig(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, **settings)
    with pytest.raises(ValueError, match="a fault of the callback's own") as error:
        train_dcr(base, world.prompts(), config, callbacks=[Fails()])
    assert not isinstance(error.value, UserError)
