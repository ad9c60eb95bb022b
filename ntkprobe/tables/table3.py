"""Table 3: the number of epochs of contrastive training; the name of a row is this number."""

import re
from typing import Any

from ..evaluation import Evaluation
from .columns import Judges
from .methods import methods_table
from .paper_reference import paper_table, paper_value
from .rendering import Table

MISSING = "evaluate a model for each number of epochs, and give them as 1=E1 2=E2 3=E3"
PRINTED = (
    "paper: as printed by Lu et al. (2026), table 3, Qwen2.5-1.5B; OR-Bench of 3 epochs is 0.83 in "
    "its tables 1 and 5."
)


def table(runs: dict[str, Evaluation], judges: Judges) -> Table:
    """Return the table of all runs."""
    return methods_table(runs, judges, "Epochs of contrastive training", "epochs")


def paper(cell: dict[str, Any], model: str) -> float | None:
    """Return the paper's number for a cell; None if it prints none."""
    numbers = re.findall(r"\d+", cell["row"])  # of several, none is known to be that of epochs
    where: dict[str, object] = {"epochs": int(numbers[0]) if len(numbers) == 1 else None}
    return paper_value(paper_table("table3"), where, cell["key"])
