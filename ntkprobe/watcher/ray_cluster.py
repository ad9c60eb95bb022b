"""Beyond one machine: the checkpoints of a run as tasks of a Ray cluster, `--ray ADDRESS`.

A task is `measure_run` on a few steps, on any machine that sees the same files under the same
paths. What it finished is on disk, so that Ray may run a task again whose worker died: nothing is
repeated and nothing is lost.
"""

import logging
import os
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..progress import progress as long_stage
from ..prompts.prompt_set import PromptSet
from .choices import Choice, StepRange
from .measure import BASE_STEP
from .reporting import Outcome, Sinks
from .run import (
    measure_run,
    open_recorder,
    require_checkpoints,
    require_place,
    require_steps,
    steps_of,
)
from .scan import CheckpointScanner
from .settings import MeasureSettings

RETRIES = 3  # of a task whose worker died
TASKS_PER_SLOT = 4  # with hundreds of adapters a task takes several, which share one base in memory


def measure_on_ray(
    prompts: PromptSet,
    output_dir: Path,
    *,
    address: str,
    ckpt_dir: Path | None,
    settings: MeasureSettings | None = None,
    choice: Choice | None = None,
    **options: Any,
) -> Outcome:
    """Measure the checkpoints of a finished run as tasks of a cluster; as `measure_run` otherwise.

    Args:
        prompts: what to measure on.
        output_dir: the folder, on a disk that all machines share, as the run itself.
        address: of the cluster, as `ray.init` takes it: `HOST:PORT`, `auto`, `local`.
        ckpt_dir: the run.
        settings: how to measure.
        choice: which checkpoints.
        options: the other arguments of `measure_run`.

    Returns:
        What became of every checkpoint.

    Raises:
        UserError: if nothing can be measured as asked.
    """
    if ckpt_dir is None or options.pop("following", None) is not None:
        raise UserError("--ray measures the checkpoints that a run (--ckpt-dir) has, no --follow")
    require_place(ckpt_dir, options.get("model"), output_dir)
    require_checkpoints(ckpt_dir)
    how = settings or MeasureSettings()
    require_steps(ckpt_dir, choice or Choice(), how, options.get("model"))
    overwrite = options.pop("overwrite", False)
    folder = open_recorder(prompts, output_dir, how, {}, overwrite=overwrite).folder
    folder.close()
    sinks = Sinks(options.pop("report_to", ()), output_dir, "ray")
    call = {"prompts": prompts, "settings": how, **_absolute(output_dir, ckpt_dir, options)}
    outcome = Outcome(output_dir)
    cluster = _Cluster(address, how)
    try:
        tasks = cluster.split(_steps(ckpt_dir, choice or Choice(), how, options.get("model")))
        # The first step alone settles the tokens that all blocks are made of.
        ahead = 1 if how.kernel is not None and how.kernel.top_k_at == "first" else 0
        with long_stage(total=sum(map(len, tasks)), desc="measuring", unit="checkpoint") as bar:
            for part in (tasks[:ahead], tasks[ahead:]):
                for steps, found in cluster.run(part, call):
                    outcome.add(found)
                    for step in found.new:
                        sinks.show(step)
                    bar.update(len(steps))
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        cluster.leave()
        sinks.close()
    outcome.total = len(folder.steps_in(output_dir))
    outcome.conclude()
    return outcome


class _Cluster:
    """A connection to a Ray cluster, and what one task needs of it.

    Raises:
        UserError: if there is no such cluster, or ray is not installed.
    """

    def __init__(self, address: str, how: MeasureSettings) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise UserError("--ray needs a package: pip install 'ntkprobe[ray]'") from error
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--ray {address}: no Ray cluster answers there: {error}") from error
        self._ray = ray
        self._running: list[Any] = []
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = 0 if how.load.device == "cpu" else int(max(m.get("GPU", 0) for m in machines))
        self._gpus = gpus if how.load.device_map else min(gpus, 1)
        kind, each = ("GPU", self._gpus) if self._gpus else ("CPU", 1)
        self._slots = max(1, int(ray.cluster_resources().get(kind, 1)) // each)

    def split(self, steps: list[int]) -> list[list[int]]:
        """Return steps as tasks: a step each, or several where there are very many."""
        size = max(1, len(steps) // (self._slots * TASKS_PER_SLOT))
        return [steps[start : start + size] for start in range(0, len(steps), size)]

    def run(self, tasks: list[list[int]], call: dict[str, Any]) -> Any:
        """Yield the steps of each task with their outcome, in the order in which they end."""
        ray = self._ray
        remote = ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=RETRIES)(_measure_steps)
        shared = ray.put(call)
        steps_of = {remote.remote(steps, shared): steps for steps in tasks}
        self._running = list(steps_of)
        while self._running:
            (done, *_), self._running = ray.wait(self._running)
            steps = steps_of[done]
            try:
                found = ray.get(done)
            except ray.exceptions.RayError as error:
                reason = str(getattr(error, "cause", None) or error).strip().splitlines()[0]
                found = Outcome(call["output_dir"], failed=dict.fromkeys(steps, reason))
            yield steps, found

    def leave(self) -> None:
        """Stop what still runs, and disconnect."""
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()


def _measure_steps(steps: list[int], call: dict[str, Any]) -> Outcome:
    """Return what became of a few steps: a task, on some machine of the cluster."""
    chosen = Choice(steps=tuple(StepRange(step, step) for step in steps))
    try:
        return measure_run(**call, choice=chosen)
    except UserError as why:
        reason = str(why).removeprefix("nothing could be measured: ")
        return Outcome(call["output_dir"], failed=dict.fromkeys(steps, reason))


def _steps(run: Path, choice: Choice, how: MeasureSettings, model: str | None) -> list[int]:
    """Return the steps to measure; 0 for the base, if one is known."""
    scanner = CheckpointScanner(run, choice)
    steps = [scanned.checkpoint.step for scanned in scanner.look() if scanned.wanted]
    known = BASE_STEP in steps_of(run, how, model)
    return [BASE_STEP, *steps] if known and scanner.wants_base else steps


def _absolute(output_dir: Path, run: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return arguments whose paths hold in any working directory."""
    model = options.get("model")
    if model and Path(model).exists():
        model = str(Path(model).resolve())
    return {
        **options,
        "output_dir": output_dir.resolve(),
        "ckpt_dir": run.resolve(),
        "model": model,
    }
