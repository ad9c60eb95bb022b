"""Finds the measurement and evaluation folders of a report."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike

from ..errors import UserError
from ..evaluation import Evaluation
from ..evaluation.results import evaluations_in, is_evaluation
from ..figures import find_runs
from ..figures.drawing import measured_in
from ..places import split_place
from ..tables import find_evaluations
from ..trajectory import Trajectory


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
        name, folder = split_place(place)
        if measured_in(folder):
            measured.append(place)
        if is_evaluation(folder) or (name is None and evaluations_in(folder)):
            evaluated.append(place)
        if place not in (*measured, *evaluated):
            raise UserError(
                f"no measurements and no evaluation in {place}: make them with `ntkprobe measure "
                f"--ckpt-dir RUN --prompts FILE --output-dir {place}`, or with `ntkprobe evaluate`"
            )
    return Sources(find_runs(measured), find_evaluations(evaluated))
