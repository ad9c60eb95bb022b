"""How OpenMP's threads wait: settled by the first import of ntkprobe, or by the user."""

import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def ran(code, **variables):
    """What a fresh Python prints, on stdout and stderr, without any of the variables but these."""
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


TELL = "import os; from ntkprobe.openmp import WAITING; print(os.environ.get('OMP_WAIT_POLICY')); "
TELL += "print(WAITING)"


def test_threads_wait_passively_once_ntkprobe_is_imported():
    policy, told = ran(f"import ntkprobe; {TELL}")[0].splitlines()
    assert policy == "passive" and told == "OMP_WAIT_POLICY=passive (set by ntkprobe)"


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")]
)
def test_what_the_user_chose_stays(name, value):
    policy, told = ran(f"import ntkprobe; {TELL}", **{name: value})[0].splitlines()
    assert policy == ("active" if name == "OMP_WAIT_POLICY" else "None")
    assert told == f"{name}={value} (from the environment)"


def test_nothing_is_claimed_where_torch_was_imported_first():
    code = f"import sys; sys.modules['torch'] = None; {TELL}"  # as if it were
    policy, told = ran(code)[0].splitlines()
    assert policy == "None" and "torch was imported first" in told


@pytest.mark.slow
@pytest.mark.parametrize(("first", "sleeps"), [("import ntkprobe", True), ("pass", False)])
def test_the_runtime_of_torch_reads_the_policy(first, sleeps):
    shown = ran(f"{first}; import torch; torch.ones(2)", OMP_DISPLAY_ENV="verbose")[1]
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("this torch has another OpenMP than libgomp, which shows how long it spins")
    assert ("GOMP_SPINCOUNT = '0'" in shown) == sleeps
