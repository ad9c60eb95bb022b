"""The papers' printed numbers for a row and a column, where there is one."""

import re
from collections.abc import Mapping
from functools import cache

import pandas as pd

METHODS = {
    "stl": "stl",
    "stl-aug": "stl-aug",
    "dcr": "dcr",
    "dcr-stl": "dcr",
    "surgical": "surgical",
    "scans": "scans",
}
"""What the paper calls a run of this name."""


@cache
def paper_table(name: str) -> pd.DataFrame:
    """Return one of the files in `figures/paper`."""
    from ..figures._paper import paper_table

    return paper_table(name)


def paper_model(settings: Mapping[str, object]) -> str:
    """Return which of the paper's models settings name; its smallest where they name none."""
    models = list(dict.fromkeys(paper_table("table1")["model"]))
    told = re.sub(r"[^a-z0-9]", "", str(settings.get("model", "")).lower())
    return next((m for m in models if re.sub(r"[^a-z0-9]", "", m.lower()) in told), models[0])


def paper_method(row: str) -> str | None:
    """Return what the paper calls a method of this name; None if it has no such."""
    return METHODS.get(row.lower().replace("_", "-").replace(" ", "-"))


def looked_up(table: pd.DataFrame, where: Mapping[str, object], column: str) -> float | None:
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
