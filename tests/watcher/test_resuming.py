"""What was measured of a run is measured again only where it has to be: activations, influence."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_runs import TEXTS, lora_run

from ntkprobe import Prompt, PromptSet, Trajectory, UserError
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.estimators.gram import stage_state
from ntkprobe.estimators.gram.stage_state import StateFile
from ntkprobe.watcher import (
    ActivationSettings,
    InfluenceSettings,
    KernelSettings,
    MeasurementFolder,
    MeasureSettings,
    measure_run,
)

PROMPTS = PromptSet.from_texts(TEXTS)
PAIRS = PromptSet(
    tuple(Prompt(text, "toxic", response="sorry I cannot") for text in TEXTS["toxic"])
)
NOTHING = MeasureSettings(kernel=None, refusal=None, load=LoadSettings(device="cpu"))
ACTIVATIONS = replace(NOTHING, activations=ActivationSettings())
INFLUENCE = replace(NOTHING, influence=InfluenceSettings(updated=PAIRS))


def activations(out: Path, step: int) -> np.ndarray:
    return Trajectory(out).activations(step)[2]


def influence(out: Path, step: int) -> np.ndarray:
    table = Trajectory(out).influence().query(f"step == {step} and target == 'refusal_literal'")
    return table.pivot(index="updated", columns="observed", values="change").to_numpy()


@dataclass(frozen=True)
class Kind:
    """One kind of measurement: its settings and files, and the numbers of a step."""

    settings: MeasureSettings
    files: str
    values: Callable[[Path, int], np.ndarray]
    rtol: float


KINDS = {
    "activations": Kind(ACTIVATIONS, "activations/*", activations, 0),
    "influence": Kind(INFLUENCE, "**/*.parquet", influence, 1e-7),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return lora_run(tmp_path_factory.mktemp("source"), steps=(10, 20))


@pytest.fixture(scope="module")
def measured_once(source, tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) / "out" for name in KINDS}
    for name, kind in KINDS.items():
        measure_run(PROMPTS, folders[name], ckpt_dir=source, settings=kind.settings)
    return folders


@pytest.fixture(params=KINDS)
def name(request):
    return request.param


@pytest.fixture
def kind(name):
    return KINDS[name]


@pytest.fixture
def measured(name, measured_once, tmp_path):
    return shutil.copytree(measured_once[name], tmp_path / "out")


def test_what_was_measured_is_not_measured_again(kind, measured, source):
    before = {path: path.stat().st_mtime_ns for path in measured.glob(kind.files)}
    outcome = measure_run(PROMPTS, measured, ckpt_dir=source, settings=kind.settings)
    assert before and (outcome.new, outcome.known) == ([], [0, 10, 20])
    assert before == {path: path.stat().st_mtime_ns for path in measured.glob(kind.files)}


def test_a_checkpoint_rewritten_since_is_measured_again(kind, measured, source, tmp_path):
    run = shutil.copytree(source, tmp_path / "run")
    for file in (run / "checkpoint-10").glob("adapter_model*"):
        shutil.copy(run / "checkpoint-20" / file.name, file)
        os.utime(file, (1e9, 1e9))  # long ago: nobody waits for it to settle
    base, settings = str(source.parent / "base"), kind.settings
    assert measure_run(PROMPTS, measured, ckpt_dir=run, settings=settings, model=base).new == [10]
    first, last = kind.values(measured, 10), kind.values(measured, 20)
    np.testing.assert_allclose(first, last, rtol=kind.rtol, atol=0)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("activations", {"layers": (1,)}, r"activations.layers = 'all', now it is \[1\]"),
        ("influence", {"updated": PAIRS.take([0])}, "influence.updated.digest"),
        ("influence", {"loss": "mean"}, "influence.loss = 'sum', now it is 'mean'"),
        ("influence", {"parameters": "all"}, "influence.parameters = 'auto', now it is 'all'"),
    ],
)
def test_other_settings_belong_into_another_folder(measured, source, name, changes, words):
    settings = KINDS[name].settings
    others = replace(settings, **{name: replace(getattr(settings, name), **changes)})
    with pytest.raises(UserError, match=words):
        measure_run(PROMPTS, measured, ckpt_dir=source, settings=others)


class Stopped(BaseException):
    """Stands for a kill."""


def test_a_kernel_that_was_stopped_goes_on_between_two_blocks(source, tmp_path, monkeypatch):
    settings = replace(NOTHING, kernel=KernelSettings(top_k=2, by="layer"))
    measure_run(PROMPTS, tmp_path / "whole", ckpt_dir=source, settings=settings)
    monkeypatch.setattr(stage_state, "SECONDS_APART", 0)
    stored, save = [], StateFile.save

    def stopping(file, state):
        save(file, state)
        stored.append(state.stage)
        if len(stored) == 2:
            raise Stopped

    monkeypatch.setattr(StateFile, "save", stopping)
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        measure_run(PROMPTS, out, ckpt_dir=source, settings=settings)
    assert [path.name for path in (out / "unfinished").iterdir()] == [
        "kernel-step-00000000.safetensors"
    ]
    measure_run(PROMPTS, out, ckpt_dir=source, settings=settings)
    assert stored[:3] == [1, 0, -1]  # the next stage of the kernel that was stopped, and no other
    assert not (out / "unfinished").exists()
    assert Trajectory(out).steps == Trajectory(tmp_path / "whole").steps
    for table in ("kernel", "parts"):
        found, whole = (getattr(Trajectory(each), table)() for each in (out, tmp_path / "whole"))
        pd.testing.assert_frame_equal(found, whole, rtol=1e-6)


@pytest.mark.parametrize("what", ["overwrite", "other settings"])
def test_the_state_of_a_stopped_kernel_does_not_stay_where_it_is_of_no_use(what, source, tmp_path):
    settings = replace(NOTHING, kernel=KernelSettings(estimator="dense", top_k=2))
    out = tmp_path / "out"
    if what == "overwrite":
        measure_run(PROMPTS, out, ckpt_dir=source, settings=settings)
    state = MeasurementFolder(out).unfinished_kernel(7)
    state.parent.mkdir()
    state.write_bytes(b"")
    measure_run(PROMPTS, out, ckpt_dir=source, settings=settings, overwrite=what == "overwrite")
    assert not state.parent.exists()
