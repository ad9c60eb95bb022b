"""From measurement folders to pictures: finds and names the runs, and draws them.

Each figure of this folder is saved as PNG and PDF, and its numbers as CSV.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from .. import plugins
from ..errors import UserError
from ..places import by_name, run_measured_in, split_place
from ..storage import replacing
from ..trajectory import Trajectory


def find_runs(places: Iterable[str | PathLike[str]]) -> dict[str, Trajectory]:
    """Return the measured runs in `places`, by name.

    Args:
        places: measurement folders, folders that hold some, or `NAME=FOLDER`. Without a NAME a
            run is called like its folder, less an ending `-ntk`.

    Returns:
        The runs; those from one parent folder are ordered with the ones refined by DCR last.

    Raises:
        UserError: if a place holds no measurements, or several under one NAME, or two runs have the
            same name.
    """  # ruff: ignore[docstring-extraneous-exception]
    return by_name((found for place in places for found in _named(str(place))), "runs")


def _named(place: str) -> Iterator[tuple[str, Trajectory]]:
    """Yield the measured runs of one place with their names.

    Raises:
        UserError: if there is none, or several have one name.
    """
    name, folder = split_place(place)
    found = measured_in(folder) or [folder]  # a place without any is refused by the run itself
    if name is not None and len(found) > 1:
        inside = ", ".join(each.name for each in found)
        raise UserError(
            f"{folder} holds {len(found)} measured runs, {inside}: name one of them, as in "
            f"{name}={found[0]}"
        )
    if name is not None:
        yield name, Trajectory(found[0])
        return
    for each in found:
        yield run_measured_in(each), Trajectory(each)


def measured_in(place: Path) -> list[Path]:
    """Return `place` if it is a measurement folder, else the measurement folders in it, if any."""
    if _is_measured(place):
        return [place]
    inside = place.iterdir() if place.is_dir() else []
    return sorted((p for p in inside if _is_measured(p)), key=lambda p: ("dcr" in p.name, p.name))


def _is_measured(folder: Path) -> bool:
    return (folder / "prompts.parquet").is_file()


@dataclass(frozen=True)
class Drawn:
    """The result of `draw_figures`.

    Attributes:
        files: three for each figure.
        missing: for each figure that could not be drawn, one line that says why and what to do.
        compared: for each figure with numbers of the paper, the rows that have some.
        broken: for each figure that failed by another exception, the error.
    """

    files: tuple[Path, ...]
    missing: dict[str, str]
    compared: dict[str, pd.DataFrame] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def comparison(self) -> str:
        """Return the compared numbers as text, a table for each figure."""
        tables = (
            f"{name}\n{rows.to_string(index=False, float_format='{:.2f}'.format)}"
            for name, rows in self.compared.items()
        )
        return "\n\n".join(tables)


def figure_names() -> list[str]:
    """Return the names of all figures: the modules of this folder with `numbers` and `draw`."""
    return plugins.modules_defining(import_module(__package__), "numbers", "draw")


def draw_figures(
    runs: dict[str, Trajectory],
    output_dir: str | PathLike[str],
    only: Collection[str] = (),
    compare: str | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Drawn:
    """Draw figures of `runs` and save each as PNG, PDF and, for its numbers, CSV.

    Args:
        runs: the measured runs, by name; see `find_runs`.
        output_dir: folder of the files; it is created.
        only: names of figures; all if empty.
        compare: `paper` adds the paper's printed numbers.
        tables: by figure, what its `numbers` returned before, which is drawn in place of `runs`.

    Returns:
        The files written, and what was missing.

    Raises:
        UserError: if there is no figure of such a name, nothing of that name to compare with, or
            `output_dir` cannot be written.
    """
    if compare not in (None, "paper"):
        raise UserError(f"nothing to compare with called {compare!r}: the only choice is paper")
    names = figure_names()
    unknown = sorted(set(only) - set(names))
    if unknown:
        raise UserError(f"no figure {unknown[0]!r}: choose from {', '.join(names)}")
    files: list[Path] = []
    missing: dict[str, str] = {}
    broken: dict[str, str] = {}
    compared: dict[str, pd.DataFrame] = {}
    for name in only or names:
        module = import_module(f"{__package__}.{name}")
        try:
            known = (tables or {}).get(name)
            numbers = module.numbers(runs) if known is None else known
            if compare is not None and hasattr(module, "with_paper_values"):
                numbers = module.with_paper_values(numbers)
                printed = [column for column in numbers if column.startswith("paper")]
                compared[name] = numbers.dropna(subset=printed)
            drawing = module.draw(numbers)
        except UserError as error:
            missing[name] = str(error)
        except Exception as error:  # one figure must not stop the others
            broken[name] = f"{type(error).__name__}: {error}"
        else:
            files += _save(Path(output_dir) / name, numbers, drawing)
    return Drawn(tuple(files), missing, compared, broken)


_UNDATED: dict[str, dict[str, Any]] = {".png": {}, ".pdf": {"CreationDate": None}}
"""Metadata without the date, so that equal numbers give equal bytes."""


def _save(stem: Path, numbers: pd.DataFrame, figure: Figure) -> list[Path]:
    """Return the three files of one figure, written atomically.

    Args:
        stem: their common path, without suffix.
        numbers: what was drawn.
        figure: the drawing.

    Returns:
        Their paths.

    Raises:
        UserError: if they cannot be written.
    """
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".pdf", ".csv")]
    try:
        for path in paths[:2]:
            with replacing(path) as hidden:
                figure.savefig(hidden, format=path.suffix[1:], metadata=_UNDATED[path.suffix])
        with replacing(paths[2]) as hidden:
            numbers.to_csv(hidden, index=False)
    except OSError as error:
        raise UserError(f"cannot write {stem}: {error.strerror or error}") from error
    return paths
