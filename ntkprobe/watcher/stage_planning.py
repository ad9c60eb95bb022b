"""`plan_stages`: what `measure_stages` would measure now, without loading or writing anything."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..checkpoints.hub_names import refuse_path
from ..errors import UserError
from ..prompts.prompt_set import PromptSet
from ..stages import Record, Stage
from .choices import Choice
from .planning import Planned, already_there, estimate, size_of
from .run import OVER_ADAPTER, kernel_needs_adapter, require_first_tokens
from .settings import MeasureSettings
from .stage_preparation import PreparedStage, begun, identified
from .stage_run import agreed, asked
from .stored_tables import StoredTables, asked_kinds, require_measurements


def plan_stages(
    output_dir: Path,
    stages: Sequence[Stage],
    *,
    prompts: PromptSet | None = None,
    model: str | None = None,
    settings: MeasureSettings | None = None,
    choice: Choice | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Return what `measure_stages` would measure now, a line each; nothing is written or loaded.

    No tokenizer is loaded either: whether a template differs, or a vocabulary that was not measured
    before, is not known here.

    Args:
        output_dir: as there.
        stages: as there.
        prompts: as there; None to leave out whether the folder has other ones.
        model: as there.
        settings: as there.
        choice: as there.
        overwrite: as there.

    Returns:
        What every stage chosen lacks, and how long it will take.

    Raises:
        UserError: if nothing can be measured so.
    """
    how, which = asked(output_dir, stages, settings, choice)
    require_measurements(output_dir)
    tables, known = StoredTables(output_dir), list[Record]()
    require_first_tokens(tables, how, which, overwrite=overwrite)
    found = [_identified(begun(step, stage), model, how) for step, stage in enumerate(stages)]
    if not overwrite:
        known = tables.settled.get("stages", [])
        agreed(tables, how, prompts, [one.record for one in found])
    chosen = [one for one in found if which.wants_place(one.step)]
    failed = [one.failure for one in chosen if one.failure is not None]
    if failed and len(failed) == len(chosen):
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(f"nothing could be measured: {failed[0]}{more}")
    planned, loaded = list[Planned](), ""
    for one in chosen:
        planned.append(_planned(tables, one, how, [] if overwrite else known, loaded))
        loaded = one.base if planned[-1].missing else loaded
    sizes = [each.size for each in planned if each.missing]
    return [*(each.line for each in planned), estimate(output_dir, sizes)]


def _identified(one: PreparedStage, model: str | None, how: MeasureSettings) -> PreparedStage:
    """Return a stage with its identity, or why it cannot be measured."""
    try:
        if one.stage.adapter is None and not Path(one.stage.model).exists():
            refuse_path(one.stage.model)
        one = identified(one, model)
    except UserError as why:
        return replace(one, failure=str(why))
    if kernel_needs_adapter(how) and one.adapter is None:
        return replace(one, failure=f"{OVER_ADAPTER}, and this is none")
    return one


def _planned(
    tables: StoredTables,
    one: PreparedStage,
    how: MeasureSettings,
    known: Sequence[Record],
    loaded: str,
) -> Planned:
    """Return what is to be done with a stage, where the model `loaded` is in memory."""
    line = f"{one.stage.name}: {one.stage.model}"
    if one.failure is not None:
        return Planned(f"{line}: {one.failure}")
    asked = asked_kinds(how)
    if any(k.get("same_vocabulary") is False for k in known[one.step : one.step + 1]):
        asked = [kind for kind in asked if kind != "kernel"]
        line += ", another vocabulary (no kernel)"
    lacking = tables.missing(how, one.step, one.record["identity"]) if known else asked
    missing = [kind for kind in asked if kind in lacking]
    weights = one.adapter.verdict.weights if one.adapter else ()
    size = sum(weight.size for weight in weights)
    size += size_of(one.base) if one.base != loaded else 0
    ending = already_there(asked, missing) if asked else ": there is nothing to measure"
    return Planned(f"{line}, {size / 1e6:.1f} MB{ending}", missing, size)
