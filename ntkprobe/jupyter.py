"""How objects look in Jupyter: tables in which nothing that a prompt says is markup, and pages."""

from dataclasses import dataclass, field
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError
from .storage import replacing

if TYPE_CHECKING:
    import pandas as pd

# Kept from the notebook's formula renderers: a prompt may hold a dollar sign.
_PLAIN = "tex2jax_ignore mathjax_ignore"


def paragraph(text: str) -> str:
    """Return a paragraph that says `text`, whatever it holds."""
    return f'<p class="{_PLAIN}">{escape(text)}</p>'


def table(frame: "pd.DataFrame", index: bool = True) -> str:
    """Return a table of a frame, its texts escaped and its numbers to three digits.

    Args:
        frame: what to show, all of it.
        index: whether to show its row labels.

    Returns:
        HTML.
    """
    return frame.to_html(
        escape=True, index=index, classes=_PLAIN, na_rep="", float_format="{:.3g}".format
    )


@dataclass(frozen=True)
class Page:
    """A whole HTML page: a file, or shown in a frame of its own.

    Attributes:
        html: all of it.
        title: what the frame is called.
    """

    html: str = field(repr=False)
    title: str = "ntkprobe report"

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the page as a file, whole or not at all.

        Args:
            path: where to; a page that is there is replaced.

        Returns:
            The path.

        Raises:
            UserError: if it cannot be written; what was there is then still there.
        """
        try:
            with replacing(Path(path)) as hidden:
                hidden.write_text(self.html, encoding="utf-8", newline="\n")
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; a page that was there still is"
            ) from error
        return Path(path)

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, as Jupyter shows it."""
        return (
            f'<iframe title="{escape(self.title)}" sandbox="allow-scripts allow-downloads" '
            f'width="100%" height="760" style="border:0" srcdoc="{escape(self.html)}"></iframe>'
        )
