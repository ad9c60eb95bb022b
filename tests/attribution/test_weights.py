"""How much each checkpoint counts."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ntkprobe.attribution.training_run import TrainedPair
from ntkprobe.attribution.weights import run_weights
from ntkprobe.checkpoints import Checkpoint
from ntkprobe.training.data import Pair

PAIRS = [TrainedPair(n, "", Pair("a", "b"), (1, 2, 3), (-100, 2, 3)) for n in range(5)]


def weights(steps, rates):
    run = SimpleNamespace(
        left_out=(),
        texts=(),
        config=SimpleNamespace(label_smoothing_factor=0.0),
        learning_rates=lambda: rates,
        log=lambda last: SimpleNamespace(rates={}, pairs=None),
    )
    scanned = [SimpleNamespace(checkpoint=Checkpoint(step, Path())) for step in steps]
    return run_weights(run, scanned, PAIRS)


def test_a_run_of_one_step_counts_at_the_checkpoint_from_which_it_was_taken():
    found, remarks = weights([0, 1], (0.1,))
    assert found == {0: pytest.approx(0.1 / 10), 1: 0} and not remarks


def test_without_learning_rates_every_checkpoint_counts_alike_and_it_is_said():
    found, remarks = weights([0, 1], ())
    assert found == {0: 1 / 20, 1: 1 / 20} and "every checkpoint counts alike" in remarks[0]
