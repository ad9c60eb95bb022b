"""The checkpoints of a model that publishes its training as revisions (Pythia, OLMo)."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja")
"""No pickles, and no code."""

WRITTEN = 10**9
"""The time that fetched weights bear: they are whole, and nobody need wait and see."""

_STEP = re.compile(r"step[-_]?(\d{1,18})")


def fetch_revisions(model: str, revisions: Sequence[str], run: Path) -> list[Path]:
    """Fetch revisions of a model on the hub as the checkpoints of a run; those there already stay.

    Args:
        model: its name on the hub.
        revisions: their names, which tell their steps.
        run: the folder that gets a `checkpoint-N` for each.

    Returns:
        The checkpoints, in the order given.

    Raises:
        UserError: if a revision tells no step, two tell the same, or one cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from ..progress import progress as long_stage

    steps = [step_of(revision) for revision in revisions]
    if len(set(steps)) < len(steps):
        raise UserError(f"two of the revisions {list(revisions)} are of one step: name one of each")
    places = [run / f"checkpoint-{step}" for step in steps]
    for revision, place in zip(
        long_stage(revisions, desc="downloading", unit="revision"), places, strict=True
    ):
        try:
            snapshot_download(
                model, revision=revision, local_dir=place, allow_patterns=list(WANTED)
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"cannot fetch {model} at {revision}: {reason}") from error
        weights = list(place.glob("*.safetensors"))
        if not weights:
            raise UserError(
                f"{model} at {revision} has no safetensors: choose a revision that has, or convert"
                " it and give the folder with --ckpt-dir"
            )
        for file in weights:
            os.utime(file, (WRITTEN, WRITTEN))
    return places


def step_of(revision: str) -> int:
    """Return the step that a revision's name tells: of `step1000`, `stage1-step500-tokens2B`.

    Raises:
        UserError: if it tells none.
    """
    found = _STEP.search(revision) or re.fullmatch(r"\D*(\d{1,18})", revision)
    if found is None:
        raise UserError(f"the revision {revision!r} tells no step: name ones such as step1000")
    return int(found[1])
