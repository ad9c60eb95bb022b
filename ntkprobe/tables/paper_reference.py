"""Numbers that the papers print for a row and a column of a table."""

import re
from collections.abc import Iterable, Mapping
from functools import cache

import pandas as pd

from ..errors import UserError

METHODS = {
    "stl": "stl",
    "stl-aug": "stl-aug",
    "dcr": "dcr",
    "dcr-stl": "dcr",
    "surgical": "surgical",
    "scans": "scans",
}
"""The paper's method by the name of a run."""


@cache
def paper_table(name: str) -> pd.DataFrame:
    """Return one of the files in `figures/paper`."""
    from ..figures.paper_numbers import paper_table

    return paper_table(name)


def paper_models(
    settings: Mapping[str, Mapping[str, object]], wanted: str | None
) -> tuple[dict[str, str], str]:
    """Return the paper's model that each row is compared with, and a note on it.

    Args:
        settings: of each row, of which `model` may name one.
        wanted: the model for all rows; None for those that are named, else the paper's smallest.

    Returns:
        A model for each row, and one line.

    Raises:
        UserError: if the paper has no such model.
    """
    known = list(dict.fromkeys(paper_table("table1")["model"]))
    if wanted is not None:
        model = next((m for m in known if _plain(m) == _plain(wanted)), None)
        if model is None:
            raise UserError(f"the paper has no model {wanted!r}: choose from {', '.join(known)}")
        return dict.fromkeys(settings, model), f"paper's numbers are those of {model}."
    found = {row: _named(known, about) for row, about in settings.items()}
    by_model: dict[str, list[str]] = {}
    for row, model in found.items():
        by_model.setdefault(model or "", []).append(row)
    parts = [f"{', '.join(rows)}: {model}" for model, rows in by_model.items() if model]
    if unnamed := by_model.get(""):
        rows = ", ".join(unnamed)
        parts.append(
            f"{rows}: {known[0]}, assumed, since no model is named (say --compare paper:M)"
        )
    models = {row: model or known[0] for row, model in found.items()}
    return models, f"paper's numbers are those of these models: {'; '.join(parts)}."


def _named(known: Iterable[str], settings: Mapping[str, object]) -> str | None:
    """Return the paper's model that settings name; None if they name none."""
    text = _plain(str(settings.get("model", "")))
    return next((model for model in known if _plain(model) in text), None)


def _plain(text: str) -> str:
    """Return the letters and digits of a text, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def paper_method(row: str) -> str | None:
    """Return the paper's name of a method; None if it has none."""
    return METHODS.get(row.lower().replace("_", "-").replace(" ", "-"))


def paper_value(table: pd.DataFrame, where: Mapping[str, object], column: str) -> float | None:
    """Return one number of a paper's table; None if it is not there.

    Args:
        table: of which each row is a method, or a setting.
        where: the values by which a row is found.
        column: whose number is wanted.

    Returns:
        The number.
    """
    if column not in table:
        return None
    for name, value in where.items():
        table = table.loc[table[name] == value]
    return float(table[column].iloc[0]) if len(table) and pd.notna(table[column].iloc[0]) else None
