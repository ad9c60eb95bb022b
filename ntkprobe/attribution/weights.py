"""How much each checkpoint counts: the learning rates of the steps that it stands for.

One step of gradient descent on a batch moves θ by −η/N Σ ∇L over the batch's pairs, N being its
tokens with a loss. A pair is in a batch of B out of n pairs once in n/B steps, and N is B times the
mean number T of such tokens, so that a step's expected part of a pair is η/(nT) times its summed
loss's gradient. The steps between two checkpoints count for the nearer one (TracIn, Pruthi et al.
2020, arXiv 2002.08484, section 3.2, with the steps of an interval at its ends).
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from ..watcher.scan import ScannedCheckpoint
from .training_run import TrainedPair, TrainingRun


def run_weights(
    run: TrainingRun,
    scanned: Sequence[ScannedCheckpoint],
    pairs: Sequence[TrainedPair],
    mean: bool = False,
) -> tuple[dict[int, float], list[str]]:
    """Return the weight of every checkpoint of a run, and what should be said of it.

    Args:
        run: the run.
        scanned: the checkpoints that count.
        pairs: what it was trained on.
        mean: of a pair's mean loss instead of its sum.

    Returns:
        Weights by step, and remarks.
    """
    steps = [each.checkpoint.step for each in scanned]
    tokens = 1.0 if mean else sum(pair.learnt for pair in pairs) / len(pairs)
    remarks = [f"checkpoint {s} is not whole: left out" for s in run.left_out]
    if smoothing := run.config.label_smoothing_factor:
        remarks.append(
            f"the run smoothed its labels (label_smoothing_factor={smoothing:g}): changes are of "
            "the pairs' loss without that"
        )
    rates: Sequence[float] = run.learning_rates()
    if not rates:
        log = run.log(scanned[-1].checkpoint)
        logged, known = log.rates, sorted(log.rates)
        every = range(1, steps[-1] + 1) if known else ()  # interpolated between logged steps
        rates = [float(np.interp(s, known, [logged[k] for k in known])) for s in every]
        remarks += [f"learning rates are from {log.source}"] if known else []
        if log.pairs not in (None, len(run.texts)):
            remarks.append(
                f"the run says that it was trained on {log.pairs} rows; {run.data} holds "
                f"{len(run.texts)} pairs"
            )
        if not rates:
            remarks.append(
                "the run does not say its learning rates: changes are per unit learning rate, "
                "and every checkpoint counts alike"
            )
    if rates:
        found = checkpoint_weights(steps, rates, len(pairs), tokens)
    else:
        found = [1 / (len(pairs) * tokens * len(steps))] * len(steps)
    return dict(zip(steps, found, strict=True)), remarks


def checkpoint_weights(
    steps: Sequence[int], rates: Sequence[float], pairs: int, mean_tokens: float
) -> list[float]:
    """Return the weight of each checkpoint.

    Args:
        steps: after how many steps each checkpoint was saved, ascending.
        rates: the learning rate of every step of the run.
        pairs: n, how many were trained on.
        mean_tokens: T, 1 for a pair's mean loss.

    Returns:
        One weight each, which add up to the sum of all rates over n T.
    """
    found = [0.0] * len(steps)
    for before, rate in enumerate(rates):  # a step is taken from the model after `before` steps
        found[_nearest(steps, before)] += rate / (pairs * mean_tokens)
    return found


def _nearest(steps: Sequence[int], step: int) -> int:
    """Return the place of the checkpoint nearest to a step, the earlier one of two."""
    after = bisect_left(steps, step)
    if after == 0:
        return 0
    if after == len(steps):
        return after - 1
    return after if steps[after] - step < step - steps[after - 1] else after - 1
