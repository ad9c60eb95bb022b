"""Names on the Hugging Face hub, told from paths that lead nowhere."""

import sys
from pathlib import Path

from ..errors import UserError, one_line
from .accounting import some
from .folders import find_checkpoints, saved_models

_asked_for: set[str] = set()


def require_hub_name(name: str) -> None:
    """Raise for what can only have been meant as a path; say once that the hub is asked.

    Args:
        name: of a model, where no folder or file of that name is.

    Raises:
        UserError: saying what is allowed.
    """  # ruff: ignore[docstring-extraneous-exception]
    refuse_path(name)
    if name not in _asked_for:
        _asked_for.add(name)
        print(f"{one_line(name)} is no folder here: asking the Hugging Face hub", file=sys.stderr)


def refuse_path(name: str) -> None:
    """Raise for what can only have been meant as a path, and leads nowhere.

    Args:
        name: of a model, where no folder or file of that name is.

    Raises:
        UserError: saying what is allowed.
    """
    if not name or name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists():
        raise UserError(
            f"no model at {name!r}: --model takes a folder with config.json, a .gguf file, or a hub"
            " name"
        )
    run = Path(name).parent
    if "/" in name and run.is_dir():
        there = [each.path.name for each in find_checkpoints(run) if each.path != run]
        if there:
            held = some([*saved_models(run), *there])
            raise UserError(f"no model at {name!r}: {run} holds {held}")
