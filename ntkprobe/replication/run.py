"""`replicate`: every stage that is not done yet, in order."""

from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from .checks import require_chat_model, require_usable_inputs
from .data_files import find_files
from .estimate import lines, require_capacity
from .evaluating import evaluate, fit
from .measuring import activations, bounds, compare, measure, predict, refusals, start
from .plan import Stage, chosen, stages
from .report import write_report
from .settings import ReplicationSettings
from .splits import make_splits
from .subjects import require_unchanged
from .training_runs import choose, train
from .workspace import Workspace

STAGE_FUNCTIONS: dict[str, Callable[[Workspace, Stage], object]] = {
    "prepare": lambda workspace, _: make_splits(
        workspace.out / "data", workspace.places, workspace.scale
    ),
    "choose": lambda workspace, _: choose(workspace),
    "train": train,
    "start": start,
    "bounds": bounds,
    "predict": lambda workspace, _: predict(workspace),
    "compare": compare,
    "refusals": refusals,
    "activations": activations,
    "measure": measure,
    "evaluate": evaluate,
    "fit": fit,
    "report": lambda workspace, _: write_report(workspace),
}


def replicate(settings: ReplicationSettings, *, only: str | None = None) -> Path:
    """Run the paper's experiment, going on where an earlier call stopped.

    Args:
        settings: what is asked for.
        only: what a stage does, its run, or its name; None for all.

    Returns:
        The report, which is there once its stage has run.

    Raises:
        UserError: if something is missing, or the folder holds another replication.
    """
    workspace = Workspace(settings, find_files(settings.data, hub=settings.hub))
    todo = chosen(stages(settings.seeds), only)
    if any(stage.what != "report" and not workspace.done(stage) for stage in todo):
        require_capacity(workspace)
    if not workspace.done(Stage("prepare")):
        require_usable_inputs(workspace)
    workspace.adopt()
    for number, stage in enumerate(todo, start=1):
        _require_one_model(workspace, stage)
        if stage.what != "report" and workspace.done(stage):
            continue
        if stage.what != "prepare" and not workspace.done(Stage("prepare")):
            raise UserError("the data are not prepared yet: run --only prepare, or without --only")
        workspace.log(f"{number}/{len(todo)}  {stage.name}")
        with workspace.timed(stage):
            STAGE_FUNCTIONS[stage.what](workspace, stage)
    return settings.output_dir / "report.md"


def plan(settings: ReplicationSettings, *, only: str | None = None) -> list[str]:
    """Return lines on the stages of `replicate` and their cost; nothing is written."""
    workspace = Workspace(settings, find_files(settings.data, hub=settings.hub))
    require_chat_model(workspace)
    todo = chosen(stages(settings.seeds), only)
    for stage in todo:
        _require_one_model(workspace, stage)
    return lines(workspace, todo)


def _require_one_model(workspace: Workspace, stage: Stage) -> None:
    """Raise if a stage, or one of its seed beside which it counts, was done with another model.

    Raises:
        UserError: saying which, and what to remove.
    """  # ruff: ignore[docstring-extraneous-exception]
    if workspace.done(stage):
        require_unchanged(workspace.out, [stage])
    elif stage.seed is not None:
        require_unchanged(workspace.out, stages([stage.seed]))
