"""Kinds of answers: compliance, distanced, partial, hard refusal and incoherent, apart."""

import pandas as pd

from ..evaluation import Evaluation
from ..evaluation.scores import KINDS
from .columns import Column, Judges, in_distribution, not_whole
from .rendering import Table

MISSING = "judge some answers with `ntkprobe evaluate`"


def table(runs: dict[str, Evaluation], judges: Judges) -> Table:
    """Return a row for each run, benchmark, kind of prompt and judge, a column for each answer."""
    judges.require(runs, "refusal")
    rows: list[dict] = []
    columns: dict[Column, None] = {}
    for name, run in runs.items():
        for found in run.kinds().to_dict("records"):
            if judges.refusal in (None, found["judge"]):
                asked = f"{found['benchmark']} ({found['kind']})"
                columns[Column(asked, asked, (found["benchmark"],), found["kind"])] = None
                place = {"row": f"{name}, {asked}, {found['judge']}", "column": found["answer"]}
                numbers = {k: found[k] for k in ("value", "low", "high", "count", "of")}
                rows.append(place | {"digits": 2} | numbers)
    names = ["row", "column", "value", "low", "high", "count", "of", "digits"]
    note = (
        f"Shares of the answers with a verdict: {', '.join(KINDS)}. Only a judge that tells them "
        "gives distanced (answered under a warning or disclaimer) and partial; incoherent is also "
        "what is empty, has no words, or goes round in a loop. Wilson's 95 % intervals."
    )
    seen, trained = in_distribution(runs, columns)
    notes = (note, *trained, *not_whole(runs, columns))
    marked = frozenset(KINDS) if seen else frozenset()
    return Table("Kinds of answers", "answers", pd.DataFrame(rows, columns=names), marked, notes)
