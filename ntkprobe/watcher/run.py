"""`measure_run`: every complete checkpoint of a run once, its tables whole or absent."""

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ..checkpoints import find_checkpoints
from ..checkpoints.folders import counts_epochs, models_inside
from ..errors import UserError, one_line
from ..models.parameters import ParameterSelection
from ..places import require_outside
from ..prompts.prompt_set import PromptSet
from .choices import Choice, Following
from .folder import MeasurementFolder
from .loop import MeasuringLoop
from .measure import BASE_STEP, CheckpointMeasurer
from .models import Models
from .recorder import Recorder
from .reporting import Outcome, Sinks
from .scan import WHOLE, CheckpointScanner
from .settings import MeasureSettings
from .stored_tables import StoredTables, asked_kinds

EPOCHS_ONLY = "the folders' names tell epochs, so that a step here is an epoch: epoch_0 is step 1"
OVER_ADAPTER = "--parameters lora is about the parameters of an adapter"


def measure_run(
    prompts: PromptSet,
    output_dir: Path,
    *,
    ckpt_dir: Path | None = None,
    model: str | None = None,
    settings: MeasureSettings | None = None,
    choice: Choice | None = None,
    following: Following | None = None,
    overwrite: bool = False,
    report_to: Sequence[str] = (),
    about: dict[str, Any] | None = None,
) -> Outcome:
    """Measure the checkpoints of a run into a folder; what is there already is not measured again.

    Args:
        prompts: what to measure on.
        output_dir: the folder, never inside the run.
        ckpt_dir: the run, or one checkpoint; without it only `model` is measured, as step 0.
        model: the base: step 0, and the model below adapters that name none here.
        settings: how to measure.
        choice: which checkpoints.
        following: wait for further checkpoints of a run that still trains.
        overwrite: forget what the folder holds.
        report_to: names of sinks, such as `tensorboard`, that show group means meanwhile.
        about: further entries of `run.json`.

    Returns:
        What became of every checkpoint.

    Raises:
        UserError: if nothing can be measured as asked.
    """  # ruff: ignore[docstring-extraneous-exception]
    how = settings or MeasureSettings()
    which = choice or Choice()
    require_run(output_dir, ckpt_dir, model, which, following, how)
    entries = {"ckpt_dir": str(ckpt_dir) if ckpt_dir else None, **(about or {})}
    if ckpt_dir is not None and counts_epochs(ckpt_dir):
        entries["steps_are"] = "epochs"
        print(one_line(f"{ckpt_dir}: {EPOCHS_ONLY}"), file=sys.stderr)
    recorder = open_recorder(prompts, output_dir, how, entries, overwrite=overwrite)
    folder = recorder.folder
    before = folder.settled.get("ckpt_dir")
    if before and ckpt_dir and Path(before).resolve() != Path(ckpt_dir).resolve():
        said = f"warning: {output_dir} was measured from {before} before, now from {ckpt_dir}"
        print(one_line(said), file=sys.stderr)
    require_first_tokens(folder, how, which)
    worker = "-of-".join(map(str, which.shard))
    over_adapter = kernel_needs_adapter(how)
    apart = over_adapter or (how.influence is not None and how.influence.needs_adapter)
    models = Models(model, how.load, merge=not (apart or recorder.adapter_apart))
    scanner = CheckpointScanner(ckpt_dir, which) if ckpt_dir is not None else None
    measurer = CheckpointMeasurer(recorder, models, measures_base=not over_adapter)
    with closing(folder), closing(Sinks(report_to, output_dir, worker)) as sinks:
        loop = MeasuringLoop(measurer, scanner, following, sinks)
        try:
            loop.run()
        except KeyboardInterrupt:
            loop.outcome.interrupted = True
    steps = folder.steps_in(output_dir)
    loop.outcome.total = len(steps)
    if ckpt_dir is not None and recorder.replaced:
        there = {checkpoint.step for checkpoint in find_checkpoints(ckpt_dir)}
        if left := sorted(steps - there - {BASE_STEP, *loop.outcome.new}):
            print(one_line(_left_over(output_dir, ckpt_dir, left)), file=sys.stderr)
    return loop.outcome


def _left_over(output_dir: Path, run: Path, steps: list[int]) -> str:
    """Return a warning about steps that may be an earlier run's."""
    return (
        f"warning: {output_dir} has step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}, of "
        f"which {run} has no checkpoint, and other checkpoints were replaced since: if the run was "
        "trained anew, these are the old run's; --overwrite measures the new one alone"
    )


def open_recorder(
    prompts: PromptSet,
    output_dir: Path,
    how: MeasureSettings,
    about: dict[str, Any],
    *,
    overwrite: bool = False,
) -> Recorder:
    """Return the recorder of a folder, which must not hold other measurements.

    Args:
        prompts: what to measure on.
        output_dir: the folder.
        how: settings.
        about: further entries of `run.json`.
        overwrite: forget what the folder holds.

    Returns:
        A recorder that is yet to be prepared.
    """
    how.check()
    folder = MeasurementFolder(output_dir, overwrite=overwrite)
    recorder = Recorder(folder, prompts, how, about)
    recorder.check()
    return recorder


def kernel_needs_adapter(how: MeasureSettings) -> bool:
    """Return whether the kernel is over an adapter's own parameters."""
    return (
        how.kernel is not None and "lora" in ParameterSelection.parse(how.kernel.parameters).terms
    )


def measures_base(how: MeasureSettings, *, adapts: bool) -> bool:
    """Return whether anything asked for can be measured on a base without an adapter.

    Args:
        how: what is asked for.
        adapts: whether the run's checkpoints are adapters: else `auto` is all parameters.
    """
    kinds = set(asked_kinds(how))
    if how.influence is not None and how.influence.needs_adapter and adapts:
        kinds.discard("influence")  # it has nothing that moves
    return bool(kinds) and not kernel_needs_adapter(how)


def require_place(ckpt_dir: Path | None, model: str | None, output_dir: Path) -> None:
    """Raise unless there is something to measure, and the folder lies outside of it.

    Raises:
        UserError: if not.
    """
    if ckpt_dir is None and model is None:
        raise UserError("nothing to measure: give --ckpt-dir RUN, or --model MODEL, or both")
    if ckpt_dir is not None:
        require_outside(output_dir, ckpt_dir)


def require_first_tokens(
    folder: StoredTables, how: MeasureSettings, choice: Choice, *, overwrite: bool = False
) -> None:
    """Raise unless it is settled which tokens all workers read: else the fastest one would choose.

    Args:
        folder: of the measurements.
        how: what is asked for.
        choice: says how many workers there are.
        overwrite: whether what the folder holds is yet to be forgotten.

    Raises:
        UserError: if not.
    """
    several = how.kernel is not None and how.kernel.top_k_at == "first" and choice.shard[1] > 1
    if several and (overwrite or not folder.has_first_tokens):
        raise UserError(
            "--top-k-at first with several workers: measure the first checkpoint alone before,"
            " with the same command and --shard 0/1 --steps 0 (or its step)"
        )


def require_run(
    output_dir: Path,
    ckpt_dir: Path | None,
    model: str | None,
    choice: Choice,
    following: Following | None,
    how: MeasureSettings,
) -> None:
    """Raise if there is nothing to measure, or no place for it.

    Args:
        output_dir: the folder of the measurements.
        ckpt_dir: the run; None for a model alone.
        model: the base, or the model.
        choice: which of the run's steps.
        following: how to wait for more of them: what is not there yet may come.
        how: what is asked for, which may be an adapter's alone.

    Raises:
        UserError: if so.
    """
    require_place(ckpt_dir, model, output_dir)
    if ckpt_dir is None and kernel_needs_adapter(how):
        raise UserError(f"{OVER_ADAPTER}, and {model} is measured without one: give --ckpt-dir")
    if ckpt_dir is not None and following is None:
        require_checkpoints(ckpt_dir)
        require_steps(ckpt_dir, choice, how, model)


def require_checkpoints(run: Path) -> None:
    """Raise unless a folder holds at least one checkpoint, whole or not.

    Raises:
        UserError: if not.
    """
    if not CheckpointScanner(run).sees_any():
        raise UserError(
            f"no checkpoints in {run}: expected folders checkpoint-N, as transformers' Trainer"
            " and trainers built on it write them, step_N or epoch_N, or one saved model or"
            f" adapter{models_inside(run) or '; --follow waits for them'}"
        )


def require_steps(
    run: Path, choice: Choice, how: MeasureSettings, model: str | None = None
) -> None:
    """Raise if a run has none of the steps chosen, or has them without the adapter asked about.

    Args:
        run: its folder.
        choice: whose steps count, and not which of them are this worker's.
        how: what is asked for.
        model: the base, if it is named.

    Raises:
        UserError: naming the steps that there are.
    """
    have = steps_of(run, how, model)
    seen = CheckpointScanner(run, Choice(steps=choice.steps)).look()
    if choice.steps and not any(step in some for some in choice.steps for step in have):
        adapts = any(scanned.verdict.kind == "adapter" for scanned in seen)
        based = any(BASE_STEP in some for some in choice.steps)
        why = "; what is asked for is an adapter's, and the base, step 0, has none"
        without = based and adapts and not measures_base(how, adapts=True)
        raise UserError(f"no checkpoint of the steps asked for: the run has {have}{why * without}")
    kinds = {s.verdict.kind for s in seen if s.wanted and s.verdict.state in WHOLE}
    if kernel_needs_adapter(how) and kinds == {"full"}:
        raise UserError(f"{OVER_ADAPTER}, and no checkpoint of {run} that is chosen has one")


def steps_of(run: Path, how: MeasureSettings, model: str | None = None) -> list[int]:
    """Return the steps of a run, with that of its base if one is known and can be measured."""
    scanner = CheckpointScanner(run)
    seen = scanner.look()
    adapts = any(scanned.verdict.kind == "adapter" for scanned in seen)
    steps = [scanned.checkpoint.step for scanned in seen]
    known = (model or adapts) and measures_base(how, adapts=adapts)
    return [BASE_STEP, *steps] if known and scanner.wants_base else steps
