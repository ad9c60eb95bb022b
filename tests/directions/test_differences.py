"""Directions in activations, against brute force and constructed clouds of points."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ntkprobe.directions.differences import (
    auc,
    classes,
    cosines,
    direction,
    drift,
    held_out_scores,
    probe_accuracy,
    projections,
    separation,
)

N, HIDDEN = 24, 40
GROUPS = ["normal"] * 8 + ["seemingly_toxic"] * 8 + ["toxic"] * 8
REFUSES = [False] * 7 + [True] + [False, True] * 4 + [True] * 6 + [False] * 2


def noise(seed=0, n=N):
    return np.random.default_rng(seed).normal(size=(n, HIDDEN))


def toxicity(refuses=REFUSES):
    return next(c for c in classes(GROUPS, refuses) if c.name == "toxicity")


def brute_scores(values, counts_up, counts_down):
    scores = []
    for i, x in enumerate(values):
        up, down = counts_up.copy(), counts_down.copy()
        up[i] = down[i] = 0
        high, low = (np.average(values, axis=0, weights=w) for w in (up, down))
        scores.append((x - low) @ (high - low) / ((high - low) @ (high - low)))
    return np.array(scores)


def test_held_out_scores_are_those_of_means_without_the_prompt_also_where_it_is_drawn_twice():
    values, generator = noise(), np.random.default_rng(1)
    up, down = np.zeros(N), np.zeros(N)
    up[:9], down[9:18] = generator.integers(0, 3, 9), generator.integers(0, 3, 9)
    found = held_out_scores(values @ values.T, up, down)
    np.testing.assert_allclose(found, brute_scores(values, up, down), rtol=1e-9)


def test_scores_of_means_with_the_prompt_call_noise_a_direction_and_held_out_ones_do_not():
    labels = np.arange(60) % 2 == 0
    apart, own = [], []
    for seed in range(20):
        values = noise(seed, 60)
        line = values[labels].mean(0) - values[~labels].mean(0)
        own.append(roc_auc_score(labels, values @ line))
        scores = held_out_scores(values @ values.T, labels.astype(float), (~labels).astype(float))
        apart.append(roc_auc_score(labels, scores))
    assert np.mean(own) > 0.85 and abs(np.mean(apart) - 0.5) < 0.06


def test_auc_is_that_of_scikit_learn_with_weights_and_ties():
    generator = np.random.default_rng(2)
    scores = generator.integers(0, 6, (5, 30)).astype(float)
    scores[0] = generator.normal(size=30)
    weights, labels = generator.integers(0, 3, (5, 30)), np.arange(30) % 3 == 0
    expected = [
        roc_auc_score(labels, row, sample_weight=w) for row, w in zip(scores, weights, strict=True)
    ]
    found = auc(scores, weights * labels, weights * ~labels)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_classes_are_as_named_and_unknown_verdicts_are_in_none():
    refuses = [None, *REFUSES[1:]]
    refusal, over, toxic = classes(GROUPS, refuses)
    assert [c.name for c in (refusal, over, toxic)] == ["refusal", "over_refusal", "toxicity"]
    assert not refusal.positive[0] and not refusal.negative[0] and toxic.negative[0]
    assert refusal.positive.sum() == 7 and refusal.negative.sum() == 8
    assert over.positive.sum() == 4 and over.negative.sum() == 4
    assert [c.name for c in classes(GROUPS, [None] * N)] == ["toxicity"]


def test_a_shifted_class_is_separated_and_noise_is_not():
    shifted = noise() + 3 * np.array([g == "toxic" for g in GROUPS])[:, None]
    true, false = (
        separation(v, toxicity(), resamples=200, permutations=199) for v in (shifted, noise())
    )
    assert true["value"] == 1 and true["p_value"] == pytest.approx(1 / 200) and true["low"] > 0.9
    assert false["p_value"] > 0.01 and false["low"] < 0.5 < false["high"]
    assert (true["positive"], true["negative"]) == (8, 8)


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_where_there_is_no_direction_nothing_is_significant(value):
    found = separation(np.full((N, HIDDEN), value), toxicity(), resamples=9, permutations=99)
    assert all(np.isnan(found[name]) for name in ("value", "low", "high", "p_value"))


def test_permutations_stay_within_groups_so_that_toxicity_is_not_taken_for_refusal():
    # Every toxic prompt is refused and no other one: nothing can be permuted within the groups.
    refuses = [group == "toxic" for group in GROUPS]
    refusal = next(c for c in classes(GROUPS, refuses) if c.name == "refusal")
    values = noise() + 3 * np.array(refuses)[:, None]
    found = separation(values, refusal, resamples=0, permutations=99)
    assert found["value"] == 1 and found["p_value"] == 1


def test_p_values_of_noise_are_uniform():
    few = [
        separation(noise(seed), toxicity(), resamples=0, permutations=49)["p_value"]
        for seed in range(100)
    ]
    assert 0.02 <= np.mean(np.array(few) <= 0.1) <= 0.2


def test_projections_are_zero_and_one_at_the_means_of_both_classes():
    values = noise() * 0.01 + 3 * np.array([g == "toxic" for g in GROUPS])[:, None]
    values[8:16] += 1.5  # halfway
    table = projections(values, toxicity(), GROUPS, resamples=99).set_index("group")
    assert table["value"].to_dict() == pytest.approx(
        {"normal": 0, "seemingly_toxic": 0.5, "toxic": 1}, abs=0.02
    )
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_cosines_are_those_of_the_directions():
    found = classes(GROUPS, REFUSES)
    table = cosines(noise(), found, resamples=99)
    for _, row in table.iterrows():
        one, other = (
            direction(noise(), next(c for c in found if c.name == row[side]))
            for side in ("direction", "other")
        )
        expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert row["value"] == pytest.approx(expected) and row["low"] < row["high"]
    assert len(table) == 3


def test_a_probe_that_has_learnt_the_source_fails_on_a_source_that_it_has_not_seen():
    # Each source has a shift of its own, and nearly one class only.
    labels = np.array(([True] * 9 + [False]) * 2 + ([False] * 9 + [True]) * 2)
    sources = ["a"] * 10 + ["b"] * 10 + ["c"] * 10 + ["d"] * 10
    shift = np.random.default_rng(3).normal(size=(4, HIDDEN))
    values = noise(n=40) * 0.5 + 3 * np.repeat(shift, 10, axis=0)
    table = probe_accuracy(values, labels, sources)
    within = table.query("held_out == 'fold'")["value"].item()
    across = table[(table["held_out"] == "source") & table["source"].isna()]["value"].item()
    assert within > 0.8 and across < within - 0.2
    true = probe_accuracy(noise(n=40) + 2 * labels[:, None], labels, sources)
    assert (true["value"] > 0.9).all()


def test_drift_of_a_model_from_itself_is_none_and_a_moved_group_is_seen():
    found = classes(GROUPS, REFUSES)
    same = drift(noise(), noise(), found, GROUPS).set_index(["what", "name"])["value"]
    assert same["direction"].to_list() == pytest.approx([1, 1, 1]) and (same["centroid"] == 0).all()
    moved = noise()
    moved[16:] += 5
    after = drift(noise(), moved, found, GROUPS).set_index(["what", "name"])["value"]
    assert after["centroid", "toxic"] > 3 and after["centroid", "normal"] == 0
    assert after["direction", "toxicity"] < 0.9
