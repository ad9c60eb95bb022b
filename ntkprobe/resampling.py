"""Means over the pairs of two groups, with bootstrap intervals that draw prompts, not pairs."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd


def mean_rows(
    pairs: pd.DataFrame, value: str, self_pairs: bool, bootstrap: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Yield a row for every ordered pair of groups of one step.

    Args:
        pairs: `observed, updated, observed_group` and `value`, a row per pair of prompts.
        value: the column to average.
        self_pairs: whether a prompt with itself counts.
        bootstrap: how many samples, and their seed.

    Yields:
        The mean, the ends of its interval and the number of pairs, where a pair has some.
    """
    grid = pairs.pivot(index="observed", columns="updated", values=value)
    matrix = grid.reindex(columns=grid.index).to_numpy()
    counts = np.isfinite(matrix)
    if not self_pairs:
        np.fill_diagonal(counts, False)
    group = pairs.drop_duplicates("observed").set_index("observed")["observed_group"]
    groups = group.loc[grid.index].to_numpy()
    # Groups in the order of their first prompt.
    members = {name: groups == name for name in dict.fromkeys(groups)}
    draws = _draws(members, *bootstrap)
    for first, second in product(members, members):
        block = np.ix_(members[first], members[second])
        if counts[block].any():
            kept, weights = np.where(counts, matrix, 0)[block], counts[block]
            yield {
                "observed_group": first,
                "updated_group": second,
                value: kept.sum() / weights.sum(),
                **_interval(kept, weights, draws[first], draws[second]),
                "pairs": int(weights.sum()),
            }


def _draws(members: dict[str, np.ndarray], resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Return how often each prompt of a group is drawn, `[resamples, prompts]` for every group."""
    generator = np.random.default_rng(seed)
    sizes = {name: int(mask.sum()) for name, mask in members.items()}
    return {
        name: generator.multinomial(size, np.full(size, 1 / size), size=resamples).astype(float)
        for name, size in sizes.items()
    }


def _interval(
    kept: np.ndarray, weights: np.ndarray, first: np.ndarray, second: np.ndarray
) -> dict[str, float]:
    """Return the ends of the 95 % interval, from how often each prompt of both groups was drawn."""
    total = np.einsum("ra,ab,rb->r", first, kept, second, optimize=True)
    pairs = np.einsum("ra,ab,rb->r", first, weights.astype(float), second, optimize=True)
    means = total[pairs > 0] / pairs[pairs > 0]
    if not means.size:
        return {}
    low, high = np.percentile(means, [2.5, 97.5])
    return {"low": float(low), "high": float(high)}
