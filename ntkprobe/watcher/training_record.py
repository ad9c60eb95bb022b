"""What a run of `ntkprobe train` recorded of its prompts, beside how they are measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.headers import Incomplete, read_json
from ..errors import UserError
from ..storage import training_settings

if TYPE_CHECKING:
    from ..prompts.templates import Template

_REPORT = "training.json"


def differences_from_training(run: Path, template: "Template") -> list[str]:
    """Return how prompts are measured otherwise than they were trained on, a line each.

    Args:
        run: a run of `ntkprobe train`, one of its checkpoints, or checkpoints of another trainer,
            of which nothing is said.
        template: that of the measurement.
    """
    place = next((p for p in (run, run.resolve().parent) if (p / _REPORT).is_file()), None)
    if place is None:
        return []
    about, system = _data(place / _REPORT), _system(place)
    lines = []
    name, day = about.get("template"), about.get("template_date")
    if name is not None and name != template.name:
        lines.append(
            f"warning: {run} was trained with the template {name!r}, its prompts are measured with "
            f"{template.name!r}: --template gives another"
        )
    elif day is not None and day != template.day:
        lines.append(
            f"warning: the template printed {day} when {run} was trained, and prints "
            f"{template.day} now: other tokens than those trained on"
        )
    if system is not None:
        lines.append(
            f"warning: {run} was trained with the system message {system[:60]!r}, its prompts are "
            "measured without it: a Jinja file with --template can hold it"
        )
    return lines


def _data(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file).get("data")
    except (Incomplete, UserError):
        return {}
    return found if isinstance(found, dict) else {}


def _system(run: Path) -> str | None:
    try:
        system = training_settings(run).get("system")
    except UserError:
        return None
    return None if system is None else str(system)
