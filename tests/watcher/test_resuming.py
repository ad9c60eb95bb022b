"""What was measured of a run is measured again only where it has to be: activations, influence."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import TEXTS, lora_run

from ntkprobe import Prompt, PromptSet, Trajectory, UserError
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.watcher import ActivationSettings, InfluenceSettings, MeasureSettings, measure_run

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
