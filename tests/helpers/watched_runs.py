"""Measurements of a run of the tiny model: the call, its settings, and what is read back."""

from dataclasses import replace

from tiny_runs import TEXTS

from ntkprobe import PromptSet, Trajectory
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.watcher import KernelSettings, MeasurementFolder, MeasureSettings, measure_run

PROMPTS = PromptSet.from_texts(TEXTS)
KERNEL = KernelSettings(estimator="dense", top_k=2)
SETTINGS = MeasureSettings(kernel=KERNEL, refusal=None, load=LoadSettings(device="cpu"))


def with_kernel(**changes):
    return replace(SETTINGS, kernel=replace(KERNEL, **changes))


def measure(run, out, settings=SETTINGS, **options):
    return measure_run(PROMPTS, out, ckpt_dir=run, settings=settings, **options)


def kernel_at(out, step):
    table = Trajectory(out).kernel()
    rows = table[table["step"] == step]
    return rows.pivot(index="observed", columns="updated", values="norm").to_numpy()


def identity_of(out, step):
    return MeasurementFolder(out).measured("kernel", step)
