"""The order of prompts on the axes of the map: by group, and similar prompts side by side."""

import numpy as np

from ..plots.style import in_order

LARGEST = 400
"""Prompts of one group that are ordered by similarity; more keep their own order."""


def map_order(similarity: np.ndarray, groups: list[str]) -> list[int]:
    """Return the positions of the prompts in the order of the map's axes.

    Args:
        similarity: `[n, n]` at one step, observed by updated; NaN where missing.
        groups: of the prompts.

    Returns:
        Every position once: groups as in the figures, prompts of a group as the leaves of a tree of
        average linkage, turned so that neighbours are similar.
    """
    both = np.nan_to_num((similarity + similarity.T) / 2)
    order: list[int] = []
    for group in in_order(groups):
        members = [place for place, name in enumerate(groups) if name == group]
        order += [members[leaf] for leaf in _leaves(both[np.ix_(members, members)])]
    return order


def _leaves(similarity: np.ndarray) -> list[int]:
    """Return the positions of one group's prompts, similar ones adjacent."""
    count = len(similarity)
    if not 2 < count <= LARGEST:
        return list(range(count))
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance = similarity.max() - similarity
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]
