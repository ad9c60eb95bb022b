"""Wilson's interval and the bootstrap, against what defines them, and one of each everywhere."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, bootstrap, norm

from ntkprobe import statistics as intervals
from ntkprobe.evaluation import scores
from ntkprobe.figures.measured_tables import refusal_probabilities, refusal_rates


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 20), (3, 20), (20, 20), (188, 250)])
def test_wilsons_limits_are_where_the_score_test_begins_to_reject(count, n):
    share, z = count / n, norm.ppf(0.975)
    for limit, end in zip(intervals.wilson(count, n), (0, n), strict=True):
        if count == end:
            assert limit == pytest.approx(count / n, abs=1e-12)
        else:
            assert abs(share - limit) == pytest.approx(z * np.sqrt(limit * (1 - limit) / n))


def coverage(limits, n, share):
    """How often the limits of a binomial count hold the true share."""
    held = [low <= share <= high for low, high in map(limits, range(n + 1))]
    return binom.pmf(np.arange(n + 1), n, share)[held].sum()


def test_wilsons_interval_holds_a_rare_rate_as_often_as_it_says_where_resampling_does_not():
    def resampled(count):
        return intervals.bootstrap(lambda drawn: drawn[:, 1] / 20, np.array([20 - count, count]))

    assert coverage(lambda count: intervals.wilson(count, 20), 20, 0.05) > 0.92
    assert coverage(resampled, 20, 0.05) < 0.7


def test_a_sum_between_two_counts_has_the_limits_around_both():
    low, high = intervals.wilson(7.5, 20)
    assert (low, high) == (intervals.wilson(7, 20)[0], intervals.wilson(8, 20)[1])
    assert intervals.wilson(0.35 * 20, 20) == intervals.wilson(7, 20)  # 7.000000000000001


def test_the_bootstrap_of_a_mean_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).beta(0.5, 0.5, size=40)
    theirs = bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    width = theirs.high - theirs.low
    found = intervals.bootstrap_mean(values)
    assert found == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)
    basic = bootstrap((values**2,), np.mean, method="percentile", rng=1).confidence_interval
    assert found != pytest.approx((basic.low, basic.high), abs=0.04 * width)


def test_to_draw_values_is_to_draw_counts_of_them():
    values = np.repeat([0.0, 0.5, 1.0], [9, 4, 12])
    counted = intervals.bootstrap(
        lambda drawn: drawn @ [0, 0.5, 1] / 25, np.array([9, 4, 12]), seed=3
    )
    assert intervals.bootstrap_mean(values, seed=3) == pytest.approx(counted, abs=0.021)  # 1/50


def test_a_statistic_without_a_value_in_some_resamples_has_the_limits_of_the_others():
    def ratio(drawn):
        return np.where(drawn[:, 0] > 0, drawn[:, 1] / np.maximum(drawn[:, 0], 1), np.nan)

    assert np.isfinite(intervals.bootstrap(ratio, np.array([1, 3]))).all()
    assert np.isnan(intervals.bootstrap(ratio, np.array([0, 3]))).all()


def test_what_draws_its_prompts_by_itself_has_the_limits_of_the_mean_over_prompts():
    values = np.random.default_rng(0).beta(0.5, 0.5, size=40)

    def mean(generator):
        return values[generator.integers(40, size=40)].mean()

    low, high = intervals.bootstrap_redrawn(mean, seed=1)
    expected = intervals.bootstrap_mean(values)
    assert (low, high) == pytest.approx(expected, abs=0.04 * (high - low))
    assert intervals.bootstrap_redrawn(mean, seed=1, resamples=99) != (low, high)


@pytest.mark.parametrize(("share", "said"), [(0.4, True), (0.6, False)])
def test_a_number_that_most_resamples_have_no_value_of_has_no_interval(share, said):
    def sometimes(generator):
        value = generator.random()
        return value if value > share else np.nan

    limits = intervals.bootstrap_redrawn(sometimes, resamples=500)
    assert np.isfinite(limits).all() == said
    assert not said or share < limits[0] < limits[1] < 1


def test_the_same_seed_gives_the_same_limits_and_another_others():
    values = np.random.default_rng(0).uniform(size=30)
    first, again, other = (intervals.bootstrap_mean(values, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_figures_and_evaluations_give_one_rate_one_interval():
    rows = pd.DataFrame(
        {"run": "r", "step": 0, "group": "toxic", "refuses": [True] * 7 + [False] * 13 + [None]}
    ).astype({"refuses": "boolean"})
    (figure,) = refusal_rates(rows).to_dict("records")
    table = scores.defence(["refusal"] * 7 + ["compliance"] * 13 + ["undetermined"])
    assert (figure["value"], figure["prompts"]) == (table.value, table.count) == (0.35, 20)
    assert (figure["low"], figure["high"]) == (table.low, table.high) == intervals.wilson(7, 20)


def test_a_probability_is_no_rate_and_is_resampled_as_often_as_all_else():
    values = np.random.default_rng(0).uniform(size=12)
    rows = pd.DataFrame({"run": "r", "step": 0, "group": "toxic", "probability": values})
    (found,) = refusal_probabilities(rows).to_dict("records")
    assert (found["low"], found["high"]) == intervals.bootstrap_mean(values)
