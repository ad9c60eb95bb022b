"""A hook of mkdocs: the page of benchmarks holds every table and figure that they have written."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

MARK = "<!-- every benchmarks/*.md -->"
TABLES = Path(__file__).parents[1] / "benchmarks"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with the tables in place of the mark, their headings a level lower."""
    if MARK not in markdown:
        return markdown
    pages = (path.read_text() for path in sorted(TABLES.glob("*.md")))
    return markdown.replace(MARK, "\n\n".join(re.sub(r"(?m)^#", "##", page) for page in pages))


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Return the site's files with the benchmarks' figures, beside the page that shows them."""
    for path in sorted(TABLES.glob("*.png")):
        files.append(
            File(
                path.name,
                str(TABLES),
                config.site_dir,
                use_directory_urls=config.use_directory_urls,
            )
        )
    return files
