"""Table 1: methods under columns of benchmarks."""

from typing import Any

from ..evaluation import Evaluation
from .columns import Judges
from .methods import methods_table
from .paper_reference import paper_method, paper_table, paper_value
from .rendering import Table

MISSING = "judge some answers with `ntkprobe evaluate`, or measure abilities"
BY_MODEL = True
PRINTED = (
    "paper: as printed by Lu et al. (2026), table 1; its PHTest has 3,269 prompts, controversial "
    "ones too, its safety 938 prompts judged by LLaMA-3-8B-Guard."
)


def table(runs: dict[str, Evaluation], judges: Judges) -> Table:
    """Return the table of all runs."""
    return methods_table(runs, judges, "Compliance, safety and ability of each method", "method")


def paper(cell: dict[str, Any], model: str) -> float | None:
    """Return the paper's number for a cell; None if it prints none."""
    where = {"model": model, "method": paper_method(cell["row"])}
    return paper_value(paper_table("table1"), where, cell["key"])
