"""Finds evaluation folders and makes the table of one name from them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from os import PathLike
from types import ModuleType
from typing import Any

import pandas as pd

from .. import plugins
from ..errors import UserError
from ..evaluation import Evaluation
from ..evaluation.results import evaluations_in
from ..places import by_name, split_place
from .columns import Judges
from .comparability import comparability
from .paper_reference import paper_models
from .rendering import Table

_NUMBERED = "table"


def table_names() -> list[str]:
    """Return the names of all tables, those of the modules of this folder with `table`."""
    modules = plugins.modules_defining(import_module(__package__), "table")
    return sorted(name.removeprefix(_NUMBERED).replace("_", "-") for name in modules)


def make_table(
    places: Iterable[str | PathLike[str]],
    name: str = "1",
    *,
    compare: str | None = None,
    judge: str | None = None,
    safety_judge: str | None = None,
) -> Table:
    """Return a table of evaluated models, or of training runs (table 2).

    Args:
        places: folders, folders that hold some, or `NAME=FOLDER`.
        name: one of `table_names()`.
        compare: `paper` adds the paper's printed numbers, `paper:MODEL` those of one of its models.
        judge: of refusals; None for XSTest's prefixes, else the first one.
        safety_judge: of safety; None for Llama Guard, else the first one.

    Returns:
        The table.

    Raises:
        UserError: if there is no such table, nothing of that name to compare with, or no number.
    """
    if name not in table_names():
        raise UserError(f"no table {name!r}: choose from {', '.join(table_names())}")
    if compare is not None and compare.partition(":")[0] != "paper":
        raise UserError(
            f"nothing to compare with called {compare!r}: the only choice is paper, or paper:MODEL"
        )
    prefix = _NUMBERED if name.isdigit() else ""
    module = import_module(f"{__package__}.{prefix}{name.replace('-', '_')}")
    runs = module.find(places) if hasattr(module, "find") else find_evaluations(places)
    table = module.table(runs, Judges(judge, safety_judge))
    if table.numbers.empty:
        raise UserError(f"nothing to show in table {name}: {module.MISSING}")
    evaluated = {row: run for row, run in runs.items() if isinstance(run, Evaluation)}
    table = replace(table, notes=(*table.notes, *comparability(evaluated)))
    if compare is None:
        return _without_key(table)
    return _with_paper_numbers(module, table, runs, compare.partition(":")[2] or None)


def find_evaluations(places: Iterable[str | PathLike[str]]) -> dict[str, Evaluation]:
    """Return the evaluations in `places`, by the names of their methods.

    Args:
        places: folders of `ntkprobe evaluate`, folders that hold some, or `NAME=FOLDER`.

    Returns:
        Evaluations, in the order given.

    Raises:
        UserError: if a place holds none, or two have the same name.
    """  # ruff: ignore[docstring-extraneous-exception]
    return by_name((found for place in places for found in _named(str(place))), "evaluations")


def _named(place: str) -> Iterator[tuple[str, Evaluation]]:
    """Yield the evaluations of one place with their names."""
    name, folder = split_place(place)
    if name is not None:
        yield name, Evaluation(folder)
        return
    inside = evaluations_in(folder)
    for path in [folder] if (folder / "prompts").is_dir() or not inside else inside:
        run = Evaluation(path)
        yield run.label, run


def _with_paper_numbers(
    module: ModuleType, table: Table, runs: dict[str, Any], model: str | None
) -> Table:
    """Return the table with a column `paper`, and a note on whose numbers these are.

    Raises:
        UserError: if the paper has no such table, or no such model.
    """
    if not hasattr(module, "paper"):
        raise UserError("the paper prints no such table: leave --compare out")
    by_model = hasattr(module, "BY_MODEL")
    if model is not None and not by_model:
        raise UserError("the paper prints this table for one model only: write --compare paper")
    models, whose = paper_models({name: _settings(run) for name, run in runs.items()}, model)
    cells = table.numbers
    printed = [module.paper(cell, models[cell["row"]]) for cell in cells.to_dict("records")]
    numbers = cells.assign(paper=pd.Series(printed, index=cells.index, dtype="float64"))
    notes = (module.PRINTED, whose) if by_model else (module.PRINTED,)
    if numbers["paper"].isna().all():
        notes = (
            "paper: it prints none of these numbers. Rows are found by their names, such as stl "
            "and dcr (give NAME=FOLDER), columns by their benchmarks.",
        )
    return _without_key(replace(table, numbers=numbers, notes=(*table.notes, *notes)))


def _settings(run: Any) -> Any:
    """Return the settings of an evaluation or a training run."""
    return run.settings if isinstance(run, Evaluation) else run


def _without_key(table: Table) -> Table:
    """Return the table without what only finds the paper's numbers."""
    return replace(table, numbers=table.numbers.drop(columns="key", errors="ignore"))
