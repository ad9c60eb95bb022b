"""Folders as a user names them: `FOLDER`, a folder that holds some, or `NAME=FOLDER`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from .errors import UserError


class InFolder(Protocol):
    """What was read from a folder."""

    @property
    def folder(self) -> Path:
        """Where it is."""


Found = TypeVar("Found", bound=InFolder)


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
