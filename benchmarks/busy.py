"""How much longer a kernel takes beside one busy process, by how OpenMP's threads wait.

`python benchmarks/busy.py [--model MODEL]` writes `busy.md`. Each measurement is a fresh process
with as many threads as torch takes by itself: of the demo's kernel, and of one of MODEL.
Idle means that this benchmark runs nothing beside it: a machine on which others work shows smaller
ratios than it has. A fair half of two cores is a ratio of 2.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from statistics import median
from typing import Any

from support.tables import machine, table, write

POLICIES = {"passive (ntkprobe's)": {}, "OpenMP's own": {"GOMP_SPINCOUNT": "300000"}}
"""libgomp spins 300,000 times where nothing is set; a variable that is set, ntkprobe leaves."""

WAYS = (False, True)


def main() -> None:
    """Time all ways in turn, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder or a GGUF file")
    parser.add_argument("--prompts", type=int, default=12, help="of MODEL's kernel")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patience", type=float, default=600.0, help="seconds for a measurement")
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "PROMPTS"))
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measured(given.worker[0], int(given.worker[1]))))
        return
    works = {"the demo's kernel": ("", "75")}
    if given.model:
        works[os.path.basename(given.model)] = (given.model, str(given.prompts))
    rows = [
        [title, policy, *cells(timed(work, variables, given.repeats, given.patience))]
        for title, work in works.items()
        for policy, variables in POLICIES.items()
    ]
    header = ["", "threads wait", "idle, s", "CPU s", "beside one, s", "CPU s", "×", "CPU ×"]
    sections = [
        "# Beside a busy process",
        f"Medians of {given.repeats}, idle and busy in turn; {machine()}; load when it began "
        f"{os.getloadavg()[0]:.1f}; by `python benchmarks/busy.py`. × is the clock's ratio.",
        table(header, rows),
    ]
    print(write(__file__, *sections))


def timed(
    work: tuple[str, str], variables: dict[str, str], repeats: int, patience: float
) -> dict[bool, list[tuple[float, float]]]:
    """Return clock and processor seconds, idle and beside a busy process, in turn."""
    found: dict[bool, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            with busy(way):
                found[way].append(alone(work, variables, patience))
    return found


def cells(found: dict[bool, list[tuple[float, float]]]) -> list[str]:
    """Return medians and their ratios."""
    middle = {way: [median(each) for each in zip(*found[way], strict=True)] for way in WAYS}
    (clock, cpu), (beside, more) = middle[False], middle[True]
    numbers = (clock, cpu, beside, more, beside / clock, more / cpu)
    return [f"{number:.2f}" for number in numbers]


def alone(work: tuple[str, str], variables: dict[str, str], patience: float) -> tuple[float, float]:
    """Return clock and processor seconds of one measurement in a fresh process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--worker", *work],
            env={**clean, **variables},
            capture_output=True,
            check=True,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        return patience, float("nan")
    clock, cpu = json.loads(done.stdout.splitlines()[-1])
    return clock, cpu


def measured(model: str, count: int) -> list[float]:
    """Return clock and processor seconds of a kernel, after one that warms up."""
    import ntkprobe as ntk  # first, since it says how threads wait
    from ntkprobe.checkpoints import load_model, load_tokenizer
    from ntkprobe.tiny import measure_path, model_path

    name = model or str(model_path())
    loaded: Any = load_model(name)
    tokenizer = load_tokenizer(name)
    prompts = ntk.PromptSet.from_file(measure_path()).sample(max(1, count // 3))
    ntk.measure_kernel(loaded, tokenizer, prompts.take([0, 1]))
    clock, cpu = time.perf_counter(), time.process_time()
    ntk.measure_kernel(loaded, tokenizer, prompts)
    return [time.perf_counter() - clock, time.process_time() - cpu]


@contextmanager
def busy(wanted: bool) -> Any:
    """Keep one process at work inside the block, if wanted."""
    process = multiprocessing.Process(target=_spin, daemon=True) if wanted else None
    if process is not None:
        process.start()
    try:
        yield
    finally:
        if process is not None:
            process.terminate()
            process.join()


def _spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
