"""What a folder's numbers depend on: written once, compared ever after."""

import json
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoints.headers import read_json
from ..errors import UserError
from ..storage import write_json

SCHEMA = 1


def settle(path: Path, record: dict[str, Any], *, what: str, instead: str) -> None:
    """Write what a folder's numbers depend on, or compare with what is written.

    Args:
        path: the JSON file.
        record: what they depend on now.
        what: the folder's contents, for the message.
        instead: what to do about another value.

    Raises:
        UserError: naming the first value that differs, as it was and as it is now.
    """
    now = json.loads(json.dumps({"schema_version": SCHEMA, **record}))
    if not path.is_file():
        write_json(path, {**now, "ntkprobe": __version__})
        return
    then = read_json(path)
    for key in now:
        if then.get(key) != now[key]:
            raise UserError(
                f"{what} in {path.parent} was made with {key} = {_short(then.get(key))}, now it is "
                f"{_short(now[key])}: {instead}"
            )


def _short(value: Any) -> str:
    """Return a value, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
