"""Defence success against compliance: both sides of the trade-off, as in figure 4."""

import pandas as pd

from ..evaluation import Evaluation
from .columns import Column, Judges, in_distribution, not_whole
from .rendering import Table

MISSING = "evaluate on safe and on unsafe prompts"


def table(runs: dict[str, Evaluation], judges: Judges) -> Table:
    """Return a row for each run, a column for each side and judge."""
    judges.require(runs, "refusal", "safety")
    rows, sides = [], {}
    for name, run in runs.items():
        for found in run.two_sided().to_dict("records"):
            named = judges.refusal if found["asks"] == "refusal" else judges.safety
            about_safety = found["asks"] == "safety" and found["kind"] == "safe"
            if not about_safety and named in (None, found["judge"]):
                place = {"row": name, "column": f"{found['measure']}, {found['judge']}"}
                numbers = {k: found[k] for k in ("value", "low", "high", "count", "of")}
                rows.append(place | numbers | {"digits": 2})
                sides[place["column"]] = found["kind"]
    names = ["row", "column", "value", "low", "high", "count", "of", "digits"]
    note = (
        "Compliance: share of all safe prompts that are answered fully. Defence: share of all "
        "unsafe prompts that are refused, or whose answer is judged safe. Wilson's 95 % intervals."
    )
    sets = tuple(sorted({name for run in runs.values() for name in run.benchmarks}))
    columns = [Column(side, f"all {side} sets", sets, side) for side in ("safe", "unsafe")]
    seen, trained = in_distribution(runs, columns)
    marked = frozenset(title for title, side in sides.items() if f"all {side} sets" in seen)
    notes = (note, *trained, *not_whole(runs, columns))
    return Table("Both sides", "method", pd.DataFrame(rows, columns=names), marked, notes)
