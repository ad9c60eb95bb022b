"""Defence success against compliance: both sides of the trade-off, as in figure 4."""

import pandas as pd

from ..evaluation import Evaluation
from ._columns import Judges
from ._rendering import Table

MISSING = "evaluate on safe and on unsafe prompts"


def table(runs: dict[str, Evaluation], judges: Judges) -> Table:
    """Return a row for each run, a column for each side and judge."""
    rows = []
    for name, run in runs.items():
        for found in run.two_sided().to_dict("records"):
            named = judges.refusal if found["asks"] == "refusal" else judges.safety
            about_safety = found["asks"] == "safety" and found["kind"] == "safe"
            if not about_safety and named in (None, found["judge"]):
                place = {"row": name, "column": f"{found['measure']}, {found['judge']}"}
                numbers = {k: found[k] for k in ("value", "low", "high", "count", "of")}
                rows.append(place | numbers | {"digits": 2})
    names = ["row", "column", "value", "low", "high", "count", "of", "digits"]
    note = (
        "Compliance: share of all safe prompts that are answered fully. Defence: share of all "
        "unsafe prompts that are refused, or whose answer is judged safe."
    )
    return Table("Both sides", "method", pd.DataFrame(rows, columns=names), notes=(note,))
