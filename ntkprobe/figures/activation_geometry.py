"""Activations of toxic-looking prompts: are the two groups apart, and what do they look like?"""

import numpy as np

from ..errors import UserError
from ..trajectory import Trajectory
from .measured_tables import missing, require_groups

GROUPS = ("seemingly_toxic", "toxic")


def first_and_last(run: Trajectory) -> list[int]:
    """Return the first and the last step with activations, or the only one.

    Args:
        run: a measured run.

    Returns:
        One or two steps.

    Raises:
        UserError: if it has none.
    """
    steps = run.activation_steps()
    if not steps:
        raise UserError(missing(run, "activations", "--only activations", run.folder))
    return sorted({steps[0], steps[-1]})


def toxic_looking(run: Trajectory) -> dict[str, np.ndarray]:
    """Return the row numbers of the seemingly toxic and of the toxic prompts.

    Args:
        run: a measured run.

    Returns:
        An array for each of both groups; a group without prompts is a `UserError`.
    """
    require_groups(run, GROUPS)
    prompts = run.prompts
    return {g: prompts.loc[prompts["group"] == g, "prompt"].to_numpy() for g in GROUPS}


def correctly_clustered(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which points two k-means clusters put into the right group (A.9).

    Which cluster stands for which group is settled by the Hungarian algorithm.

    Args:
        values: `[n, hidden]`.
        labels: `[n]`, 0 or 1.

    Returns:
        `[n]` bool; the mean is the accuracy, a half at least.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans

    found = KMeans(2, n_init=10, random_state=0).fit_predict(values)
    counts = np.array([[np.sum((found == c) & (labels == g)) for g in (0, 1)] for c in (0, 1)])
    _, group_of = linear_sum_assignment(counts, maximize=True)
    return group_of[found] == labels


def classical_scaling(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the plane that keeps Euclidean distances best (classical MDS, Torgerson 1952).

    The Gram matrix of the centred points is what double centring makes of squared distances; its
    two leading eigenvectors come from the singular value decomposition.

    Args:
        values: `[n, hidden]`.

    Returns:
        Coordinates `[n, 2]`, and the share of the variance that they show.
    """
    wide = values.astype(float) - values.mean(axis=0, dtype=float)
    left, singular, _ = np.linalg.svd(wide, full_matrices=False)
    total = float((singular**2).sum())
    plane = np.zeros((len(values), 2))
    plane[:, : len(singular[:2])] = left[:, :2] * singular[:2]
    return plane, float((singular[:2] ** 2).sum()) / total if total else 1.0
