"""Table 4: toxic prompts for each seemingly toxic one; the name of a row is this ratio."""

import re
from typing import Any

from ..evaluation import Evaluation
from .columns import Judges
from .methods import methods_table
from .paper_reference import paper_table, paper_value
from .rendering import Table

MISSING = "evaluate a model for each ratio, and give them as 1:1=E1 2:1=E2 3:1=E3"
PRINTED = (
    "paper: as printed by Lu et al. (2026), table 4, Qwen2.5-1.5B; OR-Bench of 2:1 is 0.83 in its "
    "tables 1 and 5."
)


def table(runs: dict[str, Evaluation], judges: Judges) -> Table:
    """Return the table of all runs."""
    return methods_table(runs, judges, "Toxic for each seemingly toxic prompt", "ratio")


def paper(cell: dict[str, Any], model: str) -> float | None:
    """Return the paper's number for a cell; None if it prints none."""
    ratio = re.search(r"\d+:1", cell["row"])
    where: dict[str, object] = {"ratio": ratio[0] if ratio else None}
    return paper_value(paper_table("table4"), where, cell["key"])
