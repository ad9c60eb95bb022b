"""The trained models that a stage is about, and whether one that is done was about those of now."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..checkpoints import named_identity
from ..errors import UserError
from ..settings import same_identity
from .plan import STARTS, STEERED, Stage, stages

WRITES = {
    "train": "runs",
    "start": "start",
    "bounds": "start",
    "compare": "ntk",
    "refusals": "ntk",
    "measure": "ntk",
    "activations": "activations",
    "evaluate": "eval",
    "fit": "mitigations",
}
"""The folder that a stage about a trained model writes into."""


def subjects(out: Path, stage: Stage) -> dict[str, str]:
    """Return the identity of each trained model that a stage reads, by its run.

    Args:
        out: the output folder of a replication.
        stage: any; one about the base alone has none, since one folder has one base.

    Returns:
        Of the models that are there: a published copy has none.
    """
    if stage.seed is None:
        return {}
    run = "stl" if stage.run in STEERED else stage.run
    read = [STARTS.get(run), None if stage.what == "train" else run]
    found = {}
    for name in (f"{each}-{stage.seed}" for each in read if each):
        final = out / "runs" / name / "final"
        with suppress(UserError):  # not whole (yet): the stage that loads it says so
            if final.is_dir() and (identity := named_identity(final)):
                found[name] = identity
    return found


def require_unchanged(out: Path, done: Iterable[Stage]) -> None:
    """Raise if a stage that is done was about another model than its run holds now.

    Args:
        out: the output folder of a replication.
        done: stages; those not done, and those done before models were recorded, are passed over.

    Raises:
        UserError: naming what differs, and what to remove.
    """
    for stage in done:
        path = out / "done" / f"{stage.file}.json"
        recorded = json.loads(path.read_text()).get("models", {}) if path.is_file() else {}
        now = subjects(out, stage) if recorded else {}
        for run, identity in recorded.items():
            if not same_identity(identity, now.get(run, identity)):
                before, after = (f"{each[:8]}…{each[-8:]}" for each in (identity, now[run]))
                raise UserError(
                    f"{stage.name} was done with another model than"
                    f" {out / 'runs' / run / 'final'} holds now ({before}, now {after}): to do it"
                    f" again remove {', '.join(map(str, _written(out, stage)))}"
                )


def _written(out: Path, stage: Stage) -> list[Path]:
    """Return the folder that a stage wrote into, and the records of all stages that did."""
    place = (WRITES[stage.what], stage.folder)
    beside = [s for s in stages([stage.seed or 0]) if (WRITES.get(s.what), s.folder) == place]
    records = [out / "done" / f"{each.file}.json" for each in beside]
    return [out.joinpath(*place), *filter(Path.is_file, records)]
