"""Finds the measurement and evaluation folders of a report."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from ..errors import UserError
from ..evaluation import Evaluation
from ..figures import find_runs
from ..tables import find_evaluations
from ..trajectory import Trajectory

READABLE_SCHEMA = 1


@dataclass(frozen=True)
class Sources:
    """The runs and evaluations of a report.

    Attributes:
        runs: measured runs, by name.
        evaluations: evaluated models, by name.
    """

    runs: dict[str, Trajectory] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)


def find_sources(places: Iterable[str | PathLike[str]]) -> Sources:
    """Return the measured runs and the evaluations in `places`.

    Args:
        places: folders of `ntkprobe measure` or `ntkprobe evaluate`, folders that hold some, or
            `NAME=FOLDER`.

    Returns:
        Both, each by name.

    Raises:
        UserError: if a place holds neither, a folder has another format, or two have one name.
    """
    measured, evaluated = [], []
    for place in map(str, places):
        if _holds(find_runs, place):
            measured.append(place)
        if _holds(find_evaluations, place):
            evaluated.append(place)
        if place not in (*measured, *evaluated):
            raise UserError(
                f"no measurements and no evaluation in {place}: make them with `ntkprobe measure "
                f"--ckpt-dir RUN --prompts FILE --output-dir {place}`, or with `ntkprobe evaluate`"
            )
    sources = Sources(find_runs(measured), find_evaluations(evaluated))
    found: list[Trajectory | Evaluation] = [*sources.runs.values(), *sources.evaluations.values()]
    for source in found:
        require_readable(source)
    return sources


def _holds(find: Callable[[list[str]], dict[str, Any]], place: str) -> bool:
    """Return whether a search finds something, or several of one name."""
    try:
        return bool(find([place]))
    except UserError as error:
        return "NAME=FOLDER" in str(error)


def require_readable(source: Trajectory | Evaluation) -> None:
    """Raise if a folder was written in a format that is not this one.

    Args:
        source: a run or an evaluation.

    Raises:
        UserError: naming both versions, or a `run.json` that cannot be read.
    """
    found = settings_of(source).get("schema_version", READABLE_SCHEMA)
    if found != READABLE_SCHEMA:
        raise UserError(
            f"{source.folder} has format {found!r}, this ntkprobe reads format {READABLE_SCHEMA}: "
            "use the version that wrote it (run.json names it), or measure again"
        )


def settings_of(source: Trajectory | Evaluation) -> dict:
    """Return the contents of a folder's `run.json`; empty without one.

    Args:
        source: a run or an evaluation.

    Returns:
        Its settings.

    Raises:
        UserError: if they cannot be read.
    """
    try:
        found = source.settings
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{source.folder}/run.json is damaged ({error}): measure again") from error
    if not isinstance(found, dict):
        raise UserError(f"{source.folder}/run.json holds no settings: measure again")
    return found
