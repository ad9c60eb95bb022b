"""Checks and repairs text: tokenizers, Parquet and terminals need valid Unicode.

JSON can write half a surrogate pair (U+D83D alone, as in chats that were cut in mid-emoji), files
come in other encodings than UTF-8, and a file in UTF-16 read as UTF-8 is full of NUL. Such text of
a user is refused with its place, since no rule could say what it meant; a server's is repaired,
half a pair becoming U+FFFD, since what it said is judged as it stands.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError

_HALF = re.compile(r"[\ud800-\udfff]")


def flaw_of(text: str) -> str | None:
    """Return the flaw of a text, in words; None for valid Unicode without NUL."""
    if "\0" in text:
        return "holds a NUL character: is the file UTF-16? Save it as UTF-8"
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        around = ascii(text[max(error.start - 20, 0) : error.start + 20])
        return f"holds half a surrogate pair ({half}), which is no character: mend {around}"
    return None


def flaw_within(value: Any) -> str | None:
    """Return the flaw of the first flawed text in a record, at any depth; None if there is none."""
    return next((flaw for text in _texts(value) if (flaw := flaw_of(text))), None)


def repaired(text: str) -> str:
    """Return a text with U+FFFD, the replacement character, for every half of a surrogate pair."""
    return text if text.isascii() else _HALF.sub("\N{REPLACEMENT CHARACTER}", text)


def read_utf8(path: Path) -> str:
    """Return the text of a file in UTF-8, without a byte order mark.

    Raises:
        ValueError: naming the line that is something else.
    """
    data = path.read_bytes()
    if b"\0" in data[:4]:  # also a whole file of ASCII in UTF-16, which is valid UTF-8 with NUL
        raise ValueError("it holds NUL, as a file in UTF-16 does: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"0x{data[error.start]:02x}"
        raise ValueError(f"line {line} is no UTF-8 (byte {byte}): save it as UTF-8") from error


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a value as JSON has them, names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(name)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def require_text(text: str, what: str) -> None:
    """Raise unless a text says something and can be encoded.

    Args:
        text: a prompt or an answer.
        what: what it is, for the message.

    Raises:
        UserError: if it is empty or broken.
    """
    if (flaw := flaw_of(text)) or not text.strip():
        raise UserError(f"a {what} {flaw}" if flaw else f"an empty {what}: give it some text")
