"""A hook of mkdocs: the page of benchmarks holds every table that a benchmark has written."""

import re
from pathlib import Path
from typing import Any

MARK = "<!-- every benchmarks/*.md -->"
TABLES = Path(__file__).parents[1] / "benchmarks"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with the tables in place of the mark, their headings a level lower."""
    if MARK not in markdown:
        return markdown
    # Figures lie beside this file, so that the site has them as well.
    pages = (path.read_text().replace("](../docs/", "](") for path in sorted(TABLES.glob("*.md")))
    return markdown.replace(MARK, "\n\n".join(re.sub(r"(?m)^#", "##", page) for page in pages))
