"""`ntkprobe measure`: measure eNTK and refusal probability at every checkpoint."""

import sys
from pathlib import Path
from typing import Any

import typer

from ..errors import UserError, one_line
from ._measure_options import MeasureOptions
from ._options import command_of, quieten, report_line


@command_of(MeasureOptions)
def measure(options: MeasureOptions) -> int:
    """Measure the eNTK and the refusal probability at every checkpoint of a run.

    Or of named models: --stage base=MODEL --stage sft=MODEL …, such as the stages of post-training.

    What OUT holds already is not measured again: run the same command to go on. Folders of
    checkpoints are only read; the base model, where it is known, counts as step 0.
    """  # ruff: ignore[docstring-missing-returns, docstring-missing-exception]
    from ..prompts.prompt_set import PromptSet

    if not options.prompts:
        raise UserError("no prompts: give --prompts FILE (columns prompt and group), or FILE=GROUP")
    prompts = PromptSet.from_files(options.prompts)
    if options.limit is not None:
        prompts = _first_of_each_group(prompts, options.limit)
    quieten()
    options = options.with_revisions()
    options.stages()  # mistakes in them are told first
    settings, choice, following = options.measured(), options.choice(), options.following()
    run, model, place = options.ckpt_dir, options.model, options.place()
    if options.dry_run:
        for line in _planned(options, prompts, settings):
            typer.echo(line)
        return 0
    if options.stage:
        outcome = _measured_stages(options, prompts, settings)
        typer.echo(one_line(outcome.closing_line()))
        return outcome.status
    report_line(prompts.describe())
    about = {"argv": sys.argv[1:], "trained_on": _trained_on(prompts, run, model)}
    outcome = _measured(
        options.ray,
        prompts,
        place,
        ckpt_dir=options.converted(),
        model=model,
        settings=settings,
        choice=choice,
        following=following,
        overwrite=options.overwrite,
        report_to=options.report_to or (),
        about=about,
    )
    typer.echo(one_line(outcome.closing_line()))
    return outcome.status


def _planned(options: MeasureOptions, prompts: Any, settings: Any) -> list[str]:
    """Return what would be measured, a line each."""
    from ..watcher import plan, plan_stages

    if stages := options.stages():
        return plan_stages(
            options.place(),
            stages,
            prompts=prompts,
            model=options.model,
            settings=settings,
            choice=options.choice(),
            overwrite=options.overwrite,
        )
    return plan(
        options.place(),
        prompts=prompts,
        ckpt_dir=options.converted(),
        convert=options.convert,
        model=options.model,
        settings=settings,
        choice=options.choice(),
        following=options.following(),
        overwrite=options.overwrite,
    )


def _measured_stages(options: MeasureOptions, prompts: Any, settings: Any) -> Any:
    """Return the outcome of `measure_stages`."""
    from ..watcher import measure_stages

    stages = options.stages()
    report_line(prompts.describe())
    trained = _trained_on(prompts, *(stage.model for stage in stages))
    return measure_stages(
        prompts,
        options.place(),
        stages,
        model=options.model,
        settings=settings,
        choice=options.choice(),
        overwrite=options.overwrite,
        report_to=options.report_to or (),
        about={"argv": sys.argv[1:], "trained_on": trained},
    )


def _measured(ray: str | None, prompts: Any, place: Path, **call: Any) -> Any:
    """Return the outcome of `measure_run` here, or of its tasks on a Ray cluster."""
    if ray:
        from ..watcher.ray_cluster import measure_on_ray

        return measure_on_ray(prompts, place, address=ray, **call)
    from ..watcher import measure_run

    return measure_run(prompts, place, **call)


def _trained_on(prompts: Any, *models: Path | str | None) -> dict[str, Any] | None:
    """Return how many prompts the models were trained on, as far as it is recorded, and say so."""
    from ..evaluation.overlap import measured_overlap, training_prompts

    try:
        trained = training_prompts([Path(model) for model in models if model])
    except UserError as error:
        report_line(f"what was trained on is not known: {error}")
        return None
    found = measured_overlap(prompts, trained)
    if found and found["prompts"]:
        groups = ", ".join(f"{number} {group}" for group, number in found["groups"].items())
        runs = " and ".join(name for name, number in found["sources"].items() if number)
        report_line(
            f"{found['prompts']} of {found['of']} prompts measured were trained on ({groups}; by "
            f"{runs}): what they show may not hold for others"
        )
    return found


def _first_of_each_group(prompts: Any, limit: int) -> Any:
    """Return the first `limit` prompts of each group, in order.

    Raises:
        UserError: if `limit` is less than 1.
    """
    if limit < 1:
        raise UserError(f"--limit {limit}: give 1 or more")
    return prompts.take(
        sorted(row for group in prompts.groups for row in prompts.rows(group)[:limit])
    )
