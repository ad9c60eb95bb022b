"""95 % intervals over prompts: Wilson's for rates, the percentile bootstrap's for other means.

Every interval of trajectories, figures, tables and evaluations is made here. A rate is a share of
prompts, such as those refused. What is no rate (a mean probability or similarity, κ, a win rate
with ties) is resampled, `RESAMPLES` times with a seed.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.95
RESAMPLES = 9999


def wilson(total: float, n: int) -> tuple[float, float]:
    """Return Wilson's interval of a rate (Wilson 1927).

    Args:
        total: how many of the prompts; or the sum of values between 0 and 1, whose interval is then
            on the wide side, since none with their mean varies more than zeros and ones do.
        n: the prompts, one at least.

    Returns:
        The lower and the upper limit, between 0 and 1.
    """
    from scipy.stats import binomtest

    total = round(total, 6)  # an accuracy times n is a count but for rounding
    low, high = (
        binomtest(count, n).proportion_ci(LEVEL, "wilson") for count in (floor(total), ceil(total))
    )
    return float(low.low), float(high.high)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], counts: np.ndarray, *, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap's interval of a statistic of counts.

    To draw how often each value occurs (a multinomial draw) is to draw the prompts themselves.

    Args:
        statistic: from `[resamples, cells]` counts to `[resamples]`; NaN where it has no value.
        counts: `[cells]`, observed: how many prompts have each value.
        seed: of the draws.

    Returns:
        The limits; resamples without a value are left out, and where none has one they are NaN.
    """
    n = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES)
    return percentiles(statistic(drawn))


def bootstrap_mean(values: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap's interval of a mean over prompts.

    Args:
        values: `[n]`, one for each prompt.
        seed: of the draws.

    Returns:
        The limits.
    """
    return percentiles(_draw_counts(len(values), RESAMPLES, seed) @ values / len(values))


def bootstrap_redrawn(
    statistic: Callable[[np.random.Generator], float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap's interval of what draws its prompts by itself.

    For a number that several sets of prompts enter, or one set in several places, each drawn alike.

    Args:
        statistic: draws with the generator and computes it; NaN where it has no value.
        resamples: how often.
        seed: of the draws.

    Returns:
        The limits; resamples without a value are left out, and where most have none they are NaN.
    """
    generator = np.random.default_rng(seed)
    values = np.array([statistic(generator) for _ in range(resamples)])
    enough = np.isfinite(values).sum() > resamples / 2
    return percentiles(values) if enough else (np.nan, np.nan)


def mean_rows(
    pairs: "pd.DataFrame", value: str, self_pairs: bool, resampling: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Yield the mean over the pairs of every two groups of one step, with bootstrap intervals.

    Prompts are drawn, not pairs: one drawn twice counts twice in its row and in its column.

    Args:
        pairs: `observed, updated, observed_group` and `value`, a row per pair of prompts.
        value: the column to average.
        self_pairs: whether a prompt with itself counts.
        resampling: how many resamples, 0 for no interval, and their seed.

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
    # Groups in the order of their first prompt; each is drawn with a seed of its own.
    members = {name: groups == name for name in dict.fromkeys(groups)}
    resamples, seed = resampling
    drawn = {
        name: _draw_counts(int(mask.sum()), resamples, (seed, place))
        for place, (name, mask) in enumerate(members.items())
    }
    for first, second in product(members, members):
        block = np.ix_(members[first], members[second])
        if counts[block].any():
            kept, weights = np.where(counts, matrix, 0)[block], counts[block]
            yield {
                "observed_group": first,
                "updated_group": second,
                value: kept.sum() / weights.sum(),
                **_interval(kept, weights, drawn[first], drawn[second]),
                "pairs": int(weights.sum()),
            }


def _interval(
    kept: np.ndarray, weights: np.ndarray, first: np.ndarray, second: np.ndarray
) -> dict[str, float]:
    """Return `low` and `high`, from how often each prompt of both groups was drawn."""
    total, pairs = (
        np.einsum("rb,rb->r", first @ table, second) for table in (kept, weights.astype(float))
    )
    means = total[pairs > 0] / pairs[pairs > 0]
    return dict(zip(("low", "high"), percentiles(means), strict=True)) if means.size else {}


@lru_cache(maxsize=4)
def _draw_counts(size: int, resamples: int, seed: int | tuple[int, int]) -> np.ndarray:
    """Return how often each of `size` prompts is drawn, `[resamples, size]`, not to be changed."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(size, np.full(size, 1 / size), size=resamples).astype(float)
    drawn.flags.writeable = False
    return drawn


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """Return the ends of the middle `LEVEL` of the values that are numbers; NaN if none is."""
    found = values[np.isfinite(values)]
    if not found.size:
        return np.nan, np.nan
    low, high = np.percentile(found, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
