"""The page: one HTML file that loads nothing from the network and evaluates no text.

`make_report` makes it once, `follow` writes it again whenever files are added to its folders.
"""

import base64
import hashlib
import time
from collections.abc import Callable, Iterable
from importlib.resources import files
from os import PathLike
from pathlib import Path

from jinja2 import Environment, Template
from markupsafe import Markup

from .. import __version__
from ..errors import UserError
from ..jupyter import Page
from ..plots.style import run_label
from .contents import contents_of
from .folders import Sources, find_sources
from .packing import pack

LIBRARY = ("vega.min.js", "vega-lite.min.js", "vega-interpreter.js")
SCRIPTS = (
    "data.js",
    "text.js",
    "state.js",
    "csv.js",
    "charts.js",
    "lines.js",
    "map.js",
    "overview.js",
    "training.js",
    "pair.js",
    "prompt.js",
    "layers.js",
    "benchmarks.js",
    "page.js",
)
"""In the order in which they are put together: later ones use names of earlier ones."""
STYLES = ("page.css", "views.css", "print.css")


class NothingYet(UserError):
    """The folders exist, and no checkpoint has been measured into them yet."""


def make_report(
    places: Iterable[str | PathLike[str]] | Sources,
    *,
    blur: bool = False,
    reload_seconds: int | None = None,
) -> Page:
    """Return a page about measured runs and evaluations.

    Args:
        places: folders of `ntkprobe measure` and `ntkprobe evaluate`, folders that hold some, or
            `NAME=FOLDER`.
        blur: whether toxic texts are blurred until they are pointed at.
        reload_seconds: the page offers to load itself again as often; None for a page that stays.

    Returns:
        The page.

    Raises:
        NothingYet: if no checkpoint has been measured so far; other mistakes are a `UserError`.
    """
    sources = places if isinstance(places, Sources) else find_sources(places)
    if sources.runs and not any(run.steps for run in sources.runs.values()):
        folder = next(iter(sources.runs.values())).folder
        raise NothingYet(f"no checkpoint has been measured into {folder} yet: measure one first")
    settings = {"blur": blur, "reload": reload_seconds, "version": __version__}
    packed = pack({**contents_of(sources), "page": settings})
    library = [*map(_library, LIBRARY)]
    ours = '"use strict";\n' + "\n".join(_text(f"scripts/{name}") for name in SCRIPTS)
    scripts = [*library, f"(function () {{\n{ours}\n}})();\n"]
    style = "\n".join(_text(f"styles/{name}") for name in STYLES)
    html = _template().render(
        title=_title(sources),
        policy=policy(scripts, [style]),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        index=Markup(packed.index),
        blocks={name: Markup(text) for name, text in packed.blocks.items()},
        licence=_text("vendor/LICENSE"),
        version=__version__,
    )
    return Page(html.replace("\r", ""))


def policy(scripts: Iterable[str], styles: Iterable[str]) -> str:
    """Return a content security policy under which these scripts and styles run, and nothing else.

    Args:
        scripts: the contents of inline scripts.
        styles: the contents of inline styles.

    Returns:
        The policy: no requests, no evaluated text, no forms, no frames.
    """
    return (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; "
        f"style-src {' '.join(map(_hash, styles))}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    """Return the source expression of an inline element's text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _text(name: str) -> str:
    """Return a file of this package."""
    return (files(__package__) / name).read_text("utf-8").replace("\r", "")


def _library(name: str) -> str:
    """Return a script of the plotting library, less the reference to a file that is not there."""
    lines = _text(f"vendor/{name}").split("\n")
    return "\n".join(line for line in lines if not line.startswith("//# sourceMappingURL"))


def _title(sources: Sources) -> str:
    """Return the title of the page: the names of its first runs and models."""
    names = [run_label(name).replace("\\$", "$") for name in (*sources.runs, *sources.evaluations)]
    return " · ".join(list(dict.fromkeys(names))[:4])


def _template() -> Template:
    """Return the page's template, which escapes all texts that are not `Markup`."""
    return Environment(autoescape=True).from_string(_text("page.html.jinja"))


_KINDS = (".parquet", ".safetensors", ".json")
Signature = frozenset[tuple[str, int, int]]


def follow(
    places: Iterable[str | PathLike[str]],
    output_file: Path,
    *,
    blur: bool = False,
    poll_interval: float = 10.0,
    idle_timeout: float | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Write a page, and again whenever something was added to its folders.

    Args:
        places: as of `make_report`.
        output_file: where to.
        blur: whether toxic texts are blurred.
        poll_interval: seconds between two looks.
        idle_timeout: end after so many seconds without news; None for never.
        log: called with a line for each page written, and for each error.

    Returns:
        The path. The last page, also of an interrupted call, no longer offers to load itself again.
    """
    folders = list(places)
    seen: Signature | None = None
    news = time.monotonic()
    every = max(5, round(poll_interval))
    try:
        while True:
            now = signature(folders)
            if now != seen:
                seen = now
                _write(folders, output_file, blur, every, log)
                news = time.monotonic()
            elif idle_timeout is not None and time.monotonic() - news >= idle_timeout:
                break
            time.sleep(poll_interval)
    finally:
        if output_file.is_file():
            make_report(folders, blur=blur).save(output_file)
    return output_file


def _write(
    folders: list, output_file: Path, blur: bool, every: int, log: Callable[[str], None]
) -> None:
    """Write the page; an error is raised for the first page and logged for later ones.

    Raises:
        UserError: if there is no page yet and none can be made, except that none is measured yet.
    """
    try:
        page = make_report(folders, blur=blur, reload_seconds=every)
        log(f"{page.save(output_file)} written")
    except UserError as error:
        if not output_file.is_file() and not isinstance(error, NothingYet):
            raise
        log(str(error))


def signature(places: Iterable[str | PathLike[str]]) -> Signature:
    """Return names, sizes and times of the complete files, which change when a folder grows.

    Args:
        places: as of `make_report`.

    Returns:
        An entry a file; files being written have hidden names and do not count.
    """
    found = set()
    for place in map(str, places):
        folder = Path(place) if Path(place).exists() else Path(place.partition("=")[2])
        for path in folder.rglob("[!.]*"):
            try:
                hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
                if path.suffix in _KINDS and not hidden:
                    status = path.stat()
                    found.add((str(path), status.st_size, status.st_mtime_ns))
            except OSError:  # moved or removed since listed
                continue
    return frozenset(found)
