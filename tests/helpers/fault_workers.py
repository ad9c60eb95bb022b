"""What the fault tests run in processes of their own, so that they can be killed."""

import random
import signal
import sys
import time
from pathlib import Path

from tiny_runs import TEXTS

from ntkprobe import PromptSet
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.watcher import Following, KernelSettings, MeasureSettings, measure_run

PRELOADED = ["fault_workers", "ntkprobe.estimators.dense", "ntkprobe.watcher", "tiny_runs"]
SETTINGS = MeasureSettings(
    kernel=KernelSettings(estimator="dense", top_k=2),
    refusal=None,
    load=LoadSettings(device="cpu"),
)


def measure(run: Path, out: Path, **options: object) -> object:
    import torch

    torch.set_num_threads(1)
    prompts = PromptSet.from_texts(TEXTS)
    return measure_run(prompts, out, ckpt_dir=run, settings=SETTINGS, **options)


def follow(run: Path, out: Path) -> None:
    """Wait for more checkpoints until interrupted, and leave with the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    sys.exit(measure(run, out, following=Following(poll_interval=0.02)).status)


def write_slowly(finished: Path, run: Path, keep: int, seconds: float) -> None:
    """Write the checkpoints of a finished run once more, in pieces, and delete all but the last."""
    run.mkdir()
    written = []
    for source in sorted(finished.iterdir(), key=lambda p: int(p.name.split("-")[1])):
        target = run / source.name
        target.mkdir()
        files = sorted(source.iterdir(), key=lambda p: p.stat().st_mtime_ns)
        for path in files:
            _copy_slowly(path, target / path.name, seconds / len(files))
        written.append(target)
        for old in written[:-keep]:
            _remove(old)


def _copy_slowly(source: Path, target: Path, seconds: float) -> None:
    data = source.read_bytes()
    half = random.Random(source.name).randint(0, len(data))
    with target.open("wb") as file:
        file.write(data[:half])
        file.flush()
        time.sleep(seconds)
        file.write(data[half:])


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def same_tables(out, undisturbed):
    """Say whether two folders of measurements hold the same tables, byte for byte."""

    def tables(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.glob("*/step-*.parquet")}

    return tables(out) == tables(undisturbed)
