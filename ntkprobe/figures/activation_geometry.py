"""Clusters and projections of the activations of seemingly toxic and toxic prompts (A.9)."""

import numpy as np

from ..errors import UserError
from ..trajectory import Trajectory
from .measured_tables import missing_message, require_groups

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
        raise UserError(missing_message(run, "activations", "--only activations", run.folder))
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
    """Return which points are in the cluster of their group, of two k-means clusters (A.9).

    Clusters are assigned to groups by the Hungarian algorithm.

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

    Classical MDS of Euclidean distances is PCA of the points.

    Args:
        values: `[n, hidden]`.

    Returns:
        Coordinates `[n, 2]`, and the share of the variance in this plane; 1 where all points are
        the same.
    """
    from sklearn.decomposition import PCA

    points = values.astype(float)
    plane = np.zeros((len(points), 2))
    if (points == points[0]).all():
        return plane, 1.0
    pca = PCA(n_components=min(2, *points.shape), svd_solver="full")
    coordinates = pca.fit_transform(points)
    plane[:, : coordinates.shape[1]] = coordinates
    return plane, float(pca.explained_variance_ratio_.sum())
