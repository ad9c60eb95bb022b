"""Laws of the order in which DCR sees its prompts."""

from collections import Counter

import pytest

from ntkprobe.training.contrast_data import EpochSampler

LABELS = [0] * 50 + [1] * 150


def test_the_same_seed_and_epoch_give_the_same_order():
    assert list(EpochSampler(LABELS, 8, seed=3)) == list(EpochSampler(LABELS, 8, seed=3))


@pytest.mark.parametrize("balanced", [True, False])
def test_another_seed_or_epoch_gives_another_order(balanced):
    first, other, later = (EpochSampler(LABELS, 8, balanced=balanced, seed=s) for s in (3, 4, 3))
    later.set_epoch(1)
    assert list(first) != list(other) and list(first) != list(later)


def test_balanced_batches_hold_both_labels_equally_often():
    many = LABELS * 20
    drawn = Counter(many[i] for i in EpochSampler(many, 32))
    assert drawn[0] / drawn.total() == pytest.approx(0.5, abs=0.03)


def test_natural_batches_keep_the_ratio_of_the_data():
    assert Counter(LABELS[i] for i in EpochSampler(LABELS, 8, balanced=False)) == {0: 50, 1: 150}


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("batch_size", [7, 32, 500])
def test_an_epoch_is_a_whole_number_of_batches(balanced, batch_size):
    sampler = EpochSampler(LABELS, batch_size, balanced=balanced)
    order = list(sampler)
    assert len(order) == len(sampler) and len(order) % batch_size == 0
    assert 0 <= len(order) - len(LABELS) < batch_size
    assert balanced or set(order) == set(range(len(LABELS)))


def test_an_epoch_does_not_depend_on_epochs_drawn_before():
    fresh, used = EpochSampler(LABELS, 8), EpochSampler(LABELS, 8)
    list(used)
    fresh.set_epoch(2)
    used.set_epoch(2)
    assert list(fresh) == list(used)
