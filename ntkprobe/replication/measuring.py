"""Measurements along the runs, of the models that SFT starts from, and before SFT."""

import shutil
from pathlib import Path

from ..checkpoints import find_checkpoints, load_model, load_tokenizer
from ..measurement.proposition1 import measure_bounds
from ..prompts.prompt_set import Prompt, PromptSet
from ..storage import write_table
from ..watcher import (
    ActivationSettings,
    Choice,
    InfluenceSettings,
    KernelSettings,
    MeasureSettings,
    RefusalSettings,
    measure_run,
    parse_steps,
)
from .plan import Stage
from .workspace import PHRASES, Workspace


def compare(workspace: Workspace, stage: Stage) -> None:
    """Measure the kernel of a run's first checkpoint, which is the model that its SFT starts from.

    Raises:
        UserError: if it could not be measured.
    """  # ruff: ignore[docstring-extraneous-exception]
    _along(workspace, stage, kernel=True, choice=Choice(steps=parse_steps("0")))


def refusals(workspace: Workspace, stage: Stage) -> None:
    """Measure P(refuse) and answers of every checkpoint of a run.

    Raises:
        UserError: if a checkpoint could not be measured.
    """  # ruff: ignore[docstring-extraneous-exception]
    _along(workspace, stage, kernel=False)


def measure(workspace: Workspace, stage: Stage) -> None:
    """Measure the kernel by layer of every checkpoint of a run.

    Raises:
        UserError: if a checkpoint could not be measured.
    """  # ruff: ignore[docstring-extraneous-exception]
    _along(workspace, stage, kernel=True)


def activations(workspace: Workspace, stage: Stage) -> None:
    """Store the activations of a run's final model on XSTest's prompts, for figures 7 and 8.

    Raises:
        UserError: if they could not be measured.
    """  # ruff: ignore[docstring-extraneous-exception]
    groups = {"safe": "seemingly_toxic", "unsafe": "toxic"}
    rows = workspace.splits.rows("xstest")
    prompts = PromptSet(tuple(Prompt(row["prompt"], groups[row["kind"]]) for row in rows))
    last = max(checkpoint.step for checkpoint in find_checkpoints(workspace.run(stage)))
    settings = MeasureSettings(
        kernel=None,
        refusal=None,
        activations=ActivationSettings(layers="all"),
        load=workspace.load,
    )
    _measured(
        workspace,
        prompts,
        workspace.out / "activations" / stage.folder,
        settings,
        ckpt_dir=workspace.run(stage),
        choice=Choice(steps=parse_steps(str(last))),
    )


def start(workspace: Workspace, stage: Stage) -> None:
    """Measure a model that SFT starts from on XSTest's two halves."""
    settings = MeasureSettings(
        kernel=KernelSettings(by="layer", per_group=None),
        refusal=RefusalSettings(phrases=PHRASES, generate=False),
        load=workspace.load,
        verify=False,
    )
    prompts, folder = prompts_of(workspace, "xstest_kernel"), workspace.out / "start" / stage.folder
    _measured(workspace, prompts, folder, settings, model=_starting_model(workspace, stage))


def bounds(workspace: Workspace, stage: Stage) -> None:
    """Measure Proposition 1's terms in a model that SFT starts from, on few held-out prompts."""
    path = workspace.out / "start" / stage.folder / "bounds.parquet"
    partial_dir = path.with_name("bounds-parts")
    if not path.is_file():
        found = measure_bounds(
            load_model(_starting_model(workspace, stage), workspace.load),
            load_tokenizer(_starting_model(workspace, stage), local=False),
            prompts_of(workspace, "along").sample(workspace.scale.bounds),
            layer=workspace.layer,
            directions=workspace.scale.directions,
            tail=False,  # H6 is about the terms of a frozen tail
            partial_dir=partial_dir,
        )
        write_table(path, found.frame())
    shutil.rmtree(partial_dir, ignore_errors=True)


def _starting_model(workspace: Workspace, stage: Stage) -> str:
    """Return the base, or the final model of a contrastive stage."""
    return workspace.settings.model if stage.run == "base" else str(workspace.run(stage) / "final")


def predict(workspace: Workspace) -> None:
    """Measure in the base what may predict over-refusal: similarity, and signed influence."""
    pairs = workspace.splits.rows("refusals")[: workspace.scale.pairs]
    learnt = PromptSet(tuple(Prompt(r["prompt"], "toxic", response=r["response"]) for r in pairs))
    toxic = tuple(Prompt(row["prompt"], "toxic") for row in pairs)
    asked = prompts_of(workspace, "along").in_group("seemingly_toxic")
    settings = MeasureSettings(
        kernel=KernelSettings(per_group=None),
        refusal=RefusalSettings(phrases=PHRASES, generate=False),
        influence=InfluenceSettings(updated=learnt, phrases=PHRASES, per_group=None),
        load=workspace.load,
        verify=False,
    )
    prompts = PromptSet((*asked, *toxic))
    folder = workspace.out / "start" / "prediction"
    _measured(workspace, prompts, folder, settings, model=workspace.settings.model)


def prompts_of(workspace: Workspace, name: str) -> PromptSet:
    """Return a set of prompts with groups."""
    return PromptSet.from_file(workspace.splits.path(name))


def _along(
    workspace: Workspace, stage: Stage, *, kernel: bool, choice: Choice | None = None
) -> None:
    """Measure the kernel, or refusals, of a run's checkpoints; both go into one folder."""
    scale = workspace.scale
    settings = MeasureSettings(
        kernel=KernelSettings(by="layer", per_group=scale.kernel) if kernel else None,
        refusal=None if kernel else RefusalSettings(phrases=PHRASES, max_new_tokens=scale.tokens),
        load=workspace.load,
        verify=stage.seed == workspace.settings.seeds[0],
    )
    _measured(
        workspace,
        prompts_of(workspace, "along"),
        workspace.out / "ntk" / stage.folder,
        settings,
        ckpt_dir=workspace.run(stage),
        choice=choice,
    )


def _measured(
    workspace: Workspace,
    prompts: PromptSet,
    folder: Path,
    settings: MeasureSettings,
    *,
    ckpt_dir: Path | None = None,
    model: str | None = None,
    choice: Choice | None = None,
) -> None:
    """Measure, and raise if that was interrupted or something failed.

    Raises:
        KeyboardInterrupt: if the user stopped it.
        OSError: if a checkpoint could not be measured.
    """
    outcome = measure_run(
        prompts, folder, ckpt_dir=ckpt_dir, model=model, settings=settings, choice=choice
    )
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.failed:
        step, why = next(iter(outcome.failed.items()))
        raise OSError(f"step {step} of {ckpt_dir or model} could not be measured: {why}")
    if not (outcome.new or outcome.known):
        raise OSError(f"{ckpt_dir or model} has none of the checkpoints to be measured")
