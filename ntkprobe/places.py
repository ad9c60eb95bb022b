"""Folders as a user names them (`FOLDER`, `NAME=FOLDER`), and where measurements go and do not."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from .errors import UserError

ENDING = "ntk"


class InFolder(Protocol):
    """What was read from a folder."""

    @property
    def folder(self) -> Path:
        """Where it is."""


Found = TypeVar("Found", bound=InFolder)


def measurements_of(name: str, under: str = "") -> str:
    """Return what the folder of measurements is called: `NAME-ntk`, `NAME-M-ntk`.

    Args:
        name: of what is measured.
        under: the name of a mitigation that is in force meanwhile.
    """
    return "-".join(filter(None, (name, under, ENDING)))


def measurements_beside(run: Path, under: str = "") -> Path:
    """Return the folder beside a run, also one named `.` or `..`, that its measurements go into.

    Args:
        run: its folder.
        under: as for `measurements_of`.
    """
    there = run if run.name not in ("", "..") else run.resolve()
    return there.with_name(measurements_of(there.name, under))


def run_measured_in(folder: Path) -> str:
    """Return what the run is called whose measurements a folder holds: as it, less `-ntk`."""
    return folder.resolve().name.removesuffix(f"-{ENDING}")


def split_place(place: str) -> tuple[str | None, Path]:
    """Return the NAME, if there is one, and the folder that a user means.

    Args:
        place: `FOLDER` or `NAME=FOLDER`; a folder that is there may have `=` in its name.
    """
    name, equals, folder = place.partition("=")
    return (name, Path(folder)) if equals and not Path(place).exists() else (None, Path(place))


def by_name(named: Iterable[tuple[str, Found]], what: str) -> dict[str, Found]:
    """Return what was found by its name, in the order given.

    Args:
        named: names, and what is called so.
        what: what they are, for the message.

    Returns:
        The same, by name.

    Raises:
        UserError: if two have the same name.
    """
    found: dict[str, Found] = {}
    for name, one in named:
        if name in found:
            raise UserError(
                f"two {what} are called {name!r}, {found[name].folder} and {one.folder}: give one "
                "as NAME=FOLDER"
            )
        found[name] = one
    return found


def require_outside(
    place: Path, read: Path, option: str = "--output-dir", what: str = "the run"
) -> None:
    """Raise if a folder to write into lies inside one that is only read.

    Args:
        place: the folder.
        read: a run, which may be yet to come, or the folder of a model.
        option: what names the folder to write into, for the message.
        what: what the other one is, for the message.

    Raises:
        UserError: if it does.
    """
    if place.resolve().is_relative_to(read.resolve()):
        raise UserError(f"{option} {place} lies inside {what}, which is only read: choose another")
