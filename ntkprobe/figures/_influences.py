"""The measured influence of training pairs on refusals, from one or more runs."""

import pandas as pd

from ..errors import UserError
from ..trajectory import Trajectory
from ._means import missing


def influence_rows(run: Trajectory) -> pd.DataFrame:
    """Return a run's influence on log P_refuse: one reduction, the paper's where it was measured.

    Args:
        run: a measured run.

    Returns:
        The rows of `Trajectory.influence`.

    Raises:
        UserError: if it has none.
    """
    table = run.influence()
    if table.empty:
        raise UserError(missing(run, "influence", "--influence refusal", run.folder))
    targets = list(table["target"].unique())
    target = "refusal_literal" if "refusal_literal" in targets else targets[0]
    return table[table["target"] == target]
