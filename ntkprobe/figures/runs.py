"""Finds measurement folders and names the runs in them."""

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

from ..errors import UserError
from ..trajectory import Trajectory


def find_runs(places: Iterable[str | PathLike[str]]) -> dict[str, Trajectory]:
    """Return the measured runs in `places`, by name.

    Args:
        places: measurement folders, folders that hold some, or `NAME=FOLDER`. Without a NAME a
            run is called like its folder, less an ending `-ntk`.

    Returns:
        The runs; those from one parent folder are ordered with the ones refined by DCR last.

    Raises:
        UserError: if a place holds no measurements, or two runs have the same name.
    """
    runs: dict[str, Trajectory] = {}
    for name, folder in (found for place in places for found in _named(str(place))):
        if name in runs:
            raise UserError(
                f"two runs are called {name!r}, {runs[name].folder} and {folder}: "
                "give one as NAME=FOLDER"
            )
        runs[name] = Trajectory(folder)
    return runs


def _named(place: str) -> Iterator[tuple[str, Path]]:
    name, equals, folder = place.partition("=")
    if equals and not Path(place).exists():
        yield name, _measured(Path(folder))[0]
    else:
        for found in _measured(Path(place)):
            yield found.resolve().name.removesuffix("-ntk"), found


def _measured(place: Path) -> list[Path]:
    """Return `place` if it is a measurement folder, else the measurement folders in it.

    Args:
        place: a folder.

    Returns:
        At least one folder.

    Raises:
        UserError: if there is none.
    """
    if _is_measured(place):
        return [place]
    inside = place.iterdir() if place.is_dir() else []
    found = sorted((p for p in inside if _is_measured(p)), key=lambda p: ("dcr" in p.name, p.name))
    if not found:
        raise UserError(
            f"no measurements in {place}: make them with "
            f"`ntkprobe measure --ckpt-dir RUN --prompts FILE --output-dir {place}`"
        )
    return found


def _is_measured(folder: Path) -> bool:
    return (folder / "prompts.parquet").is_file()
