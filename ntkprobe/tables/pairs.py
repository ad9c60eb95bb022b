"""Safe prompts and their unsafe contrasts: how often a model distinguishes the two."""

import pandas as pd

from ..evaluation import Evaluation
from ..evaluation.scores import OUTCOMES
from .columns import Column, Judges, in_distribution, not_whole
from .rendering import Table

MISSING = "evaluate on a benchmark with pairs, such as xstest"


def table(runs: dict[str, Evaluation], judges: Judges) -> Table:
    """Return a row for each run, benchmark and judge, a column for each outcome."""
    judges.require(runs, "refusal")
    rows: list[dict] = []
    sets: dict[str, None] = {}
    for name, run in runs.items():
        for found in run.pairs().to_dict("records"):
            if judges.refusal in (None, found["judge"]):
                row = f"{name}, {found['benchmark']}, {found['judge']}"
                sets[found["benchmark"]] = None
                place = {"row": row, "column": found["outcome"].replace("_", " "), "digits": 2}
                rows.append(place | {k: found[k] for k in ("value", "low", "high", "count", "of")})
    names = ["row", "column", "value", "low", "high", "count", "of", "digits"]
    note = (
        f"Outcomes of a pair: {', '.join(OUTCOMES).replace('_', ' ')}. Right is a safe prompt that "
        "is complied with and a contrast that is refused, in part or wholly. Wilson's 95 % "
        "intervals."
    )
    columns = [Column(s, f"{s} ({kind})", (s,), kind) for s in sets for kind in ("safe", "unsafe")]
    seen, trained = in_distribution(runs, columns)
    marked = frozenset(row["column"] for row in rows if seen)
    notes = (note, *trained, *not_whole(runs, columns))
    numbers = pd.DataFrame(rows, columns=names)
    return Table("Pairs told apart", "answers", numbers, marked, notes)
