"""How objects look in Jupyter: small tables, in which nothing that a prompt says is markup."""

from html import escape
from typing import TYPE_CHECKING

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
