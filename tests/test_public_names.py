"""What `import ntkprobe as ntk` gives: every name when it is asked for, and none before."""

import gc
import subprocess
import sys
import warnings
from contextlib import nullcontext
from importlib import import_module

import pytest

import ntkprobe as ntk
from ntkprobe import moved_modules
from ntkprobe.lazy_imports import names_of


@pytest.mark.parametrize("name", ntk.__all__)
def test_every_public_name_is_there(name):
    assert getattr(ntk, name) is not None


MOVED = {
    "apply_step": "measurement.influence",
    "full_vocabulary_norms": "measurement.full_vocabulary",
    "predict_step": "measurement.influence",
    "random_probe_norms": "measurement.random_probes",
    "read_steps": "measurement.influence",
    "record_step": "measurement.influence",
}


@pytest.mark.parametrize("name", MOVED)
def test_a_name_that_has_moved_is_still_there_and_tells_its_home(name):
    home = f"ntkprobe.{MOVED[name]}"
    with pytest.warns(DeprecationWarning, match=f"from {home} import {name}$"):
        found = getattr(ntk, name)
    assert found is getattr(import_module(home), name) and name not in ntk.__all__


def test_a_public_name_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("measure_run", "train_dcr", "train_sft", "SFTConfig", "Gram", "Probe"):
            assert getattr(ntk, name) is not None and name in ntk.__all__


@pytest.mark.parametrize("name", ["dense", "finite_difference", "forward_mode", "gram", "sketch"])
def test_an_estimator_is_found_in_its_folder(name):
    assert getattr(ntk.estimators, name).__name__ == f"ntkprobe.estimators.{name}"


@pytest.mark.parametrize("package", [ntk, ntk.estimators, ntk.mitigations])
def test_what_is_not_there_is_no_attribute(package):
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(package, "no" + "thing")


def test_importing_the_package_loads_no_torch():
    code = "import sys, ntkprobe, ntkprobe.estimators; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("old", "new"), moved_modules.MOVED.items())
def test_a_module_is_found_by_its_old_name_with_a_warning(old, new):
    sys.modules.pop(f"ntkprobe.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"ntkprobe.{old} has moved"):
        found = import_module(f"ntkprobe.{old}")
    home = import_module(f"ntkprobe.{new}")
    assert found is home and home.__spec__.name == home.__name__ == f"ntkprobe.{new}"


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        import_module("ntkprobe.nowhere")


@pytest.mark.parametrize("at_work", [True, False])
@pytest.mark.parametrize("module", ["base64", "no_such_module"])
def test_the_garbage_collector_is_left_as_it_was_and_waits_for_an_import(
    monkeypatch, at_work, module
):
    during = []

    def imported(name):
        during.append(gc.isenabled())
        return import_module(name.rpartition(".")[2])

    monkeypatch.setattr("ntkprobe.lazy_imports.import_module", imported)
    find = names_of("package", {"b64encode": module})
    (gc.enable if at_work else gc.disable)()
    try:
        with nullcontext() if module == "base64" else pytest.raises(ModuleNotFoundError):
            find("b64encode")
        assert during == [False] and gc.isenabled() == at_work
    finally:
        gc.enable()
