"""Agreement of judges: Cohen's κ of every two that ask the same question, in two classes."""

import pandas as pd

from ..evaluation import Evaluation
from .columns import Judges
from .rendering import Table

MISSING = "let two judges that ask the same look at one benchmark: `ntkprobe evaluate --judge …`"


def table(runs: dict[str, Evaluation], judges: Judges) -> Table:
    """Return a row for each run and set of prompts, a column for each two judges."""
    rows = []
    for name, run in runs.items():
        for found in run.agreement().to_dict("records"):
            place = {"row": f"{name}, {found['benchmark']} ({found['kind']})"}
            place["column"] = f"{found['judge']}, {found['other']}"
            numbers = {key: found[key] for key in ("low", "high", "count", "of")}
            rows.append(place | {"value": found["kappa"], "digits": 2} | numbers)
    names = ["row", "column", "value", "low", "high", "count", "of", "digits"]
    note = (
        "Cohen's κ over the prompts that both judged, refused or not, or safe or not; 95 % "
        "bootstrap intervals. – where both say one and the same of every prompt."
    )
    return Table("Agreement of judges", "answers", pd.DataFrame(rows, columns=names), notes=(note,))
