"""How OpenMP's threads wait for each other: passively, unless the user chose otherwise.

torch splits its sums over OpenMP threads. One that has finished its share spins until the others
have, in libgomp 3 ms by default, and takes a processor from a thread that has work wherever another
process runs: beside one, many small operations took 2 to 18 times as long. The runtimes (libgomp in
torch's wheels for Linux; LLVM's and Intel's elsewhere) read the variables once, when they are
loaded, so that nothing can be set once torch is imported.
"""

import os
import sys

VARIABLE = "OMP_WAIT_POLICY"
ALSO = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables of single runtimes that say the same; where a user set one, nothing is set."""


def wait_passively() -> str:
    """Let OpenMP's threads sleep while they wait, if that can still be chosen and nobody has.

    Returns:
        What holds in this process, for people: the policy, and who chose it.
    """
    chosen = [f"{name}={os.environ[name]}" for name in (VARIABLE, *ALSO) if name in os.environ]
    if chosen:
        return f"{', '.join(chosen)} (from the environment)"
    if "torch" in sys.modules:
        return (
            f"OpenMP's default, which spins: torch was imported first; set {VARIABLE}=passive "
            "before Python starts, or import ntkprobe before torch"
        )
    os.environ[VARIABLE] = "passive"
    return f"{VARIABLE}=passive (set by ntkprobe)"


WAITING = wait_passively()
"""What holds in this process, settled when ntkprobe is first imported."""
