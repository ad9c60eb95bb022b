"""`plan`: what `measure_run` would measure now, without loading or writing anything."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..checkpoints import Checkpoint, Readiness, identity, readiness
from ..checkpoints.completeness import weight_files
from ..checkpoints.conversion import planned_conversions
from ..checkpoints.folders import counts_epochs
from ..errors import UserError
from ..prompts.prompt_set import PromptSet
from .choices import Choice, Following
from .measure import BASE_STEP
from .models import Models
from .run import EPOCHS_ONLY, measures_base, require_first_tokens, require_run
from .scan import WHOLE, CheckpointScanner, ScannedCheckpoint
from .settings import MeasureSettings, require_same
from .stored_tables import StoredTables, asked_kinds, require_measurements

TO_CONVERT = "in shards, converted first"


@dataclass(frozen=True)
class Planned:
    """A line about a model, which of its tables are missing, and the bytes to read."""

    line: str
    missing: Sequence[str] = ()
    size: int = 0


def plan(
    output_dir: Path,
    *,
    prompts: PromptSet | None = None,
    ckpt_dir: Path | None = None,
    model: str | None = None,
    settings: MeasureSettings | None = None,
    choice: Choice | None = None,
    following: Following | None = None,
    overwrite: bool = False,
    convert: bool = False,
    **_: Any,
) -> list[str]:
    """Return what `measure_run` would measure now, a line each; nothing is written or loaded.

    Args:
        output_dir: as there.
        prompts: as there; None to leave out whether the folder has other ones.
        ckpt_dir: as there.
        model: as there.
        settings: as there.
        choice: as there.
        following: as there.
        overwrite: as there.
        convert: whether checkpoints in shards are to be converted before.

    Returns:
        The state and size of every checkpoint chosen, and how long the rest will take.

    Raises:
        UserError: if it cannot be measured so.
    """  # ruff: ignore[docstring-extraneous-exception]
    how, which = settings or MeasureSettings(), choice or Choice()
    how.check()
    require_run(output_dir, ckpt_dir, model, which, following, how)
    require_measurements(output_dir)
    tables = StoredTables(output_dir)
    if prompts is not None and not overwrite:
        about = {"digest": prompts.digest, "count": len(prompts)}
        require_same(output_dir, tables.settled, how.record(about))
    require_first_tokens(tables, how, which, overwrite=overwrite)
    scanner = None if ckpt_dir is None else CheckpointScanner(ckpt_dir, which)
    seen = [] if scanner is None else scanner.look()
    if convert and ckpt_dir is not None:
        made = planned_conversions(ckpt_dir, output_dir / "converted")
        seen = [_as_converted(s, made) if s.checkpoint.path in made else s for s in seen]
    planned = _base(tables, scanner, seen, model, how, overwrite)
    planned += [_checkpoint(tables, each, how, overwrite) for each in seen if each.wanted]
    epochs = [EPOCHS_ONLY] if ckpt_dir is not None and counts_epochs(ckpt_dir) else []
    sizes = [each.size for each in planned if each.missing]
    refused = sum(each.wanted and each.verdict.state == "refused" for each in seen)
    return [*(each.line for each in planned), *epochs, estimate(output_dir, sizes, refused)]


def _as_converted(
    scanned: ScannedCheckpoint, made: Mapping[Path, Path | None]
) -> ScannedCheckpoint:
    """Return a checkpoint in shards as what it is, or will be, once it is converted."""
    there, step = made[scanned.checkpoint.path], scanned.checkpoint.step
    if there is not None:
        return replace(scanned, checkpoint=Checkpoint(step, there), verdict=readiness(there))
    adapter = (scanned.checkpoint.path / "adapter_config.json").is_file()
    kind: Literal["adapter", "full"] = "adapter" if adapter else "full"
    return replace(scanned, verdict=Readiness("ready", TO_CONVERT, kind))


def _base(
    tables: StoredTables,
    scanner: CheckpointScanner | None,
    seen: Sequence[ScannedCheckpoint],
    model: str | None,
    how: MeasureSettings,
    overwrite: bool,
) -> list[Planned]:
    """Return the base as step 0, where it is known and counts as such."""
    whole = sorted((s for s in seen if s.verdict.state in WHOLE), key=lambda s: not s.is_ready)
    if not (scanner is None or (whole and scanner.wants_base)):
        return []
    models = Models(model, how.load)
    try:
        if whole and whole[0].verdict.kind == "adapter":
            models.learn_base(whole[0].checkpoint.path)
        known = models.base_identity()
        size = 0 if known is None else size_of(str(models.name))
    except UserError as error:
        return [Planned(f"the base, step {BASE_STEP}: {error}")]
    if known is None or not measures_base(how, adapts=models.adapts):
        return []
    asked = asked_kinds(how)
    if how.influence is not None and how.influence.needs_adapter and models.adapts:
        asked.remove("influence")  # it has nothing that moves
    lacking = asked if overwrite else tables.missing(how, BASE_STEP, known[1])
    missing = [kind for kind in asked if kind in lacking]
    what = f"{known[0]}, {size / 1e6:.1f} MB{already_there(asked, missing)}"
    return [Planned(f"the base, step {BASE_STEP}: {what}", missing, size)]


def _checkpoint(
    tables: StoredTables, scanned: ScannedCheckpoint, how: MeasureSettings, overwrite: bool
) -> Planned:
    """Return what is to be done with a checkpoint of the run."""
    verdict, step = scanned.verdict, scanned.checkpoint.step
    size = sum(weight.size for weight in verdict.weights)
    why = f" ({verdict.reason})" if verdict.reason else ""
    line = f"{scanned.checkpoint.path.name}: {verdict.state}{why}"
    if verdict.state not in WHOLE:
        return Planned(line)
    line += f", {verdict.kind}" + f", {size / 1e6:.1f} MB" * bool(verdict.weights)
    asked = missing = asked_kinds(how)
    converted = verdict.reason != TO_CONVERT
    if (
        not overwrite and converted and step in tables.steps_in(tables.path)
    ):  # else its files need not be read
        which = identity(scanned.checkpoint.path, verdict.weights)
        missing = tables.missing(how, step, which)
    return Planned(line + already_there(asked, missing), missing, size)


def already_there(asked: Sequence[str], missing: Sequence[str]) -> str:
    """Return the end of a line about a model: which of the tables asked for are missing, if any."""
    if not missing:
        return ", has measurements"
    return f", lacks {' and '.join(missing)}" if len(missing) < len(asked) else ""


def size_of(model: str) -> int:
    """Return the bytes of a model's files; 0 of one on the hub."""
    place = Path(model)
    files = weight_files(place) if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())


def estimate(output_dir: Path, sizes: Sequence[int], refused: int = 0) -> str:
    """Return what is to be read, and how long it will take, going by what was measured before."""
    seconds = StoredTables.seconds_in(output_dir)
    never = f", {refused} refused, see above" if refused else ""
    if not sizes:
        return f"0 to measure{never}"
    what = f"{len(sizes)} to measure, {sum(sizes) / 1e6:.1f} MB to read{never}"
    if not seconds:
        return f"{what}; how long it takes is known once one is measured"
    each = statistics.median(seconds)
    return f"{what}, about {each:.0f} s each and {each * len(sizes):.0f} s in all"
