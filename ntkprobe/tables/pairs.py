"""Safe prompts and their unsafe contrasts: how often a model tells the two apart."""

import pandas as pd

from ..evaluation import Evaluation
from ..evaluation.scores import OUTCOMES
from ._columns import Judges
from ._rendering import Table

MISSING = "evaluate on a benchmark with pairs, such as xstest"


def table(runs: dict[str, Evaluation], judges: Judges) -> Table:
    """Return a row for each run, benchmark and judge, a column for each outcome."""
    rows = []
    for name, run in runs.items():
        for found in run.pairs().to_dict("records"):
            if judges.refusal in (None, found["judge"]):
                row = f"{name}, {found['benchmark']}, {found['judge']}"
                place = {"row": row, "column": found["outcome"].replace("_", " "), "digits": 2}
                rows.append(place | {k: found[k] for k in ("value", "low", "high", "count", "of")})
    names = ["row", "column", "value", "low", "high", "count", "of", "digits"]
    note = (
        f"Outcomes of a pair: {', '.join(OUTCOMES).replace('_', ' ')}. Right is a safe prompt that "
        "is complied with and a contrast that is refused, in part or wholly."
    )
    return Table("Pairs told apart", "answers", pd.DataFrame(rows, columns=names), notes=(note,))
