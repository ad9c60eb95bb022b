"""What `import ntkprobe as ntk` gives: every name when it is asked for, and none before."""

import subprocess
import sys

import pytest

import ntkprobe as ntk


@pytest.mark.parametrize("name", ntk.__all__)
def test_every_public_name_is_there(name):
    assert getattr(ntk, name) is not None


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
