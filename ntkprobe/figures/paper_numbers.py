"""The numbers that the paper prints, for comparison with measured ones."""

from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).with_name("paper")
MODEL = "Qwen2.5-1.5B"
"""The model of the paper's figures 1b, 4 and 5 (4.2, 7.2); figures 3 and 6 name none."""


def paper_table(name: str) -> pd.DataFrame:
    """Return the numbers that the paper prints in a figure, a table or the text.

    Args:
        name: `fig6`, `table1` … `table5` or `text`.

    Returns:
        The file of that name in `figures/paper`, where the columns are explained.
    """
    return pd.read_csv(FOLDER / f"{name}.csv", comment="#")


def paper_value(name: str, quantity: str) -> float:
    """Return one number of a table that has the columns `quantity` and `value`."""
    table = paper_table(name).set_index("quantity")
    return float(table["value"].loc[quantity])


def method_of(run: object) -> str | None:
    """Return the paper's method of a run of this name, `stl` or `dcr`; None if it has none."""
    return {"stl": "stl", "dcr": "dcr", "dcr-stl": "dcr"}.get(str(run))
