"""Table 5: every judge's own verdict on the same answers, side by side."""

from typing import Any

import pandas as pd

from ..evaluation import Evaluation
from .columns import (
    Judges,
    all_verdicts,
    column_verdicts,
    in_distribution,
    judged_by,
    measured_columns,
    not_whole,
    score,
)
from .paper_reference import paper_method, paper_table, paper_value
from .rendering import Table

MISSING = "judge some answers: `ntkprobe evaluate … --judge NAME`"
PRINTED = "paper: as printed by Lu et al. (2026), table 5; the model is not stated there."
_THEIRS = {
    "xstest_prefixes": "keyword",
    "llm-gpt-4o": "gpt-4o",
    "llm-gpt-5.1": "gpt-5.1",
    "llama_guard": "llama-guard-3-8b",
}


def table(runs: dict[str, Evaluation], judges: Judges) -> Table:
    """Return a column for each set of prompts and judge: all of them, or those that were named."""
    verdicts = all_verdicts(runs)
    for asks, named in (("refusal", judges.refusal), ("safety", judges.safety)):
        if named is not None:
            judges.chosen(verdicts, asks)
            verdicts = verdicts.loc[(verdicts["asks"] != asks) | (verdicts["judge"] == named)]
    columns, rows = list(measured_columns(verdicts)), []
    for name, run in runs.items():
        own = verdicts.loc[verdicts["row"] == name]
        unjudged = run.unjudged(own)
        for column in columns:
            for judge in sorted(set(column_verdicts(own, column)["judge"])):
                place = {"row": name, "column": f"{column.title}, {judge}"}
                said = judged_by(judge, column, own, unjudged)
                rows.append(place | {"key": (column.key, judge)} | score(said, column))
    names = ["row", "column", "key", "value", "low", "high", "count", "of", "digits"]
    titles, trained = in_distribution(runs, columns)
    marked = frozenset(r["column"] for r in rows if r["column"].rpartition(", ")[0] in titles)
    notes = (
        "Judges of refusals: share of compliance with safe prompts, share of unsafe ones refused. "
        "Judges of safety: share of answers judged safe. Wilson's 95 % intervals; undetermined "
        "verdicts count as neither.",
        *trained,
        *not_whole(runs, columns),
    )
    numbers = pd.DataFrame(rows, columns=names)
    return Table("One model, several judges", "method", numbers, marked, notes)


def paper(cell: dict[str, Any], model: str) -> float | None:
    """Return the paper's number for a cell; None if it prints none."""
    quantity, judge = cell["key"]
    where = {"method": paper_method(cell["row"]), "quantity": quantity, "judge": _THEIRS.get(judge)}
    return paper_value(paper_table("table5"), where, "value")
