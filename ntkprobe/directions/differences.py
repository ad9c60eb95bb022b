"""Directions in activations: of refusal, of over-refusal, of toxicity, and what lies along them.

A direction is a difference of two classes' means, as in Arditi et al. 2024 (arXiv 2406.11717).
Scores say which prompts lie along it. They are held out: a prompt's own activation is left out of
the means that score it, since a mean in many dimensions always points at its own members. All of it
depends on inner products alone, so one Gram matrix of the n prompts serves all resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ..statistics import RESAMPLES, percentiles, wilson

NAMES = ("refusal", "over_refusal", "toxicity")
PERMUTATIONS = 999
CHUNK = 500


@dataclass(frozen=True, eq=False)
class Classes:
    """Two classes of prompts between which a direction is taken.

    Attributes:
        name: `refusal`, refused − answered among toxic and normal prompts; `over_refusal`, refused
            − answered among seemingly toxic ones; `toxicity`, toxic − normal.
        positive: `[n]` bool, where the direction points to.
        negative: `[n]` bool, where it comes from.
        strata: `[n]` int; resamples and permutations keep what each stratum has of prompts.
    """

    name: str
    positive: np.ndarray
    negative: np.ndarray
    strata: np.ndarray


def classes(
    groups: Sequence[str], refuses: Sequence[bool | None], sources: Sequence[str] | None = None
) -> list[Classes]:
    """Return the classes of each direction that these prompts allow.

    Args:
        groups: of the n prompts.
        refuses: whether each was refused; None where this is not known.
        sources: which data set each is from; permutations then stay within a source.

    Returns:
        Those with two prompts or more in both classes. Verdicts are permuted within groups for
        `refusal`, since toxic and normal prompts differ in more than in being refused.
    """
    group = np.asarray(groups, dtype=object)
    known = np.array([verdict is not None and not pd.isna(verdict) for verdict in refuses])
    refused = np.array([bool(v) if k else False for v, k in zip(refuses, known, strict=True)])
    source = np.asarray(sources if sources is not None else [""] * len(group), dtype=object)
    toxic, normal, seeming = (group == g for g in ("toxic", "normal", "seemingly_toxic"))
    both = (toxic | normal) & known
    found = [
        Classes("refusal", both & refused, both & ~refused, _numbered(group, source)),
        Classes(
            "over_refusal", seeming & known & refused, seeming & known & ~refused, _numbered(source)
        ),
        Classes("toxicity", toxic, normal, _numbered(source)),
    ]
    return [one for one in found if min(one.positive.sum(), one.negative.sum()) > 1]


def _numbered(*labels: np.ndarray) -> np.ndarray:
    keys = list(zip(*labels, strict=True))
    place = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([place[key] for key in keys])


def direction(values: np.ndarray, of: Classes) -> np.ndarray:
    """Return the difference of both classes' means, `[hidden]`, from activations `[n, hidden]`."""
    wide = np.asarray(values, dtype=float)
    return wide[of.positive].mean(axis=0) - wide[of.negative].mean(axis=0)


def held_out_scores(gram: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return how far each prompt lies along a direction that its own activation has no part in.

    With means m₊ and m₋ without the prompt, d = m₊ − m₋: (x − m₋)·d / ‖d‖², which is 0 at the
    negative class's mean and 1 at the positive one's.

    Args:
        gram: ⟨x_i, x_j⟩, `[n, n]`.
        positive: how often each prompt counts in the positive class, `[..., n]`.
        negative: likewise in the negative one; no prompt is in both.

    Returns:
        `[..., n]`; NaN for the only member of a class.
    """
    own = np.diag(gram)
    up, down = (counts @ gram for counts in (positive, negative))  # ⟨Σ, x_i⟩
    pp, pn, nn = (
        (first * second).sum(-1, keepdims=True)
        for first, second in ((up, positive), (up, negative), (down, negative))
    )
    # Each prompt's own copies taken out of the sums, at that prompt.
    with np.errstate(invalid="ignore", divide="ignore"):
        n_up = positive.sum(-1, keepdims=True) - positive
        n_down = negative.sum(-1, keepdims=True) - negative
        up_x = (up - positive * own) / n_up
        down_x = (down - negative * own) / n_down
        up_up = (pp - 2 * positive * up + positive**2 * own) / n_up**2
        down_down = (nn - 2 * negative * down + negative**2 * own) / n_down**2
        up_down = (pn - positive * down - negative * up) / (n_up * n_down)
        length = up_up - 2 * up_down + down_down
        return (up_x - down_x - up_down + down_down) / length


def auc(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return how often a positive prompt scores above a negative one; ties count one half.

    Args:
        scores: `[..., n]`.
        positive: weights of the positive class, `[..., n]`.
        negative: weights of the negative one.

    Returns:
        `[...]`; NaN where a class is empty or a score of a member is no number.
    """
    flat = scores.reshape(-1, scores.shape[-1])
    weights = [np.broadcast_to(w, scores.shape).reshape(flat.shape) for w in (positive, negative)]
    order = np.argsort(flat, axis=1, kind="stable")
    s, p, q = (np.take_along_axis(values, order, axis=1) for values in (flat, *weights))
    below = np.cumsum(q, axis=1) - q
    same = np.zeros(len(flat))
    for row in np.flatnonzero((np.diff(s, axis=1) == 0).any(axis=1)):  # ties are rare
        for value in np.unique(s[row][:-1][np.diff(s[row]) == 0]):
            tied = s[row] == value
            first = np.flatnonzero(tied)[0]
            above = below[row][tied] - below[row][first]
            same[row] += (p[row][tied] * (0.5 * q[row][tied].sum() - above)).sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        value = ((p * below).sum(axis=1) + same) / (p.sum(axis=1) * q.sum(axis=1))
    lost = (np.isnan(s) & ((p > 0) | (q > 0))).any(axis=1)
    return np.where(lost, np.nan, value).reshape(scores.shape[:-1])


def separation(
    values: np.ndarray,
    of: Classes,
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how well the held-out direction tells its two classes apart.

    Args:
        values: activations, `[n, hidden]`.
        of: the classes.
        resamples: of the stratified bootstrap over prompts, which keeps both classes' sizes.
        permutations: of the class labels within strata.
        seed: of both.

    Returns:
        `direction, value` (the AUC), `low, high, p_value, positive, negative`. Where every stratum
        is of one class there is nothing to permute, and `p_value` is 1. Where there is no
        direction, since all activations are alike or one is no number, all are NaN.
    """
    member = of.positive | of.negative
    gram = _gram(values[member])
    positive = of.positive[member]
    generator = np.random.default_rng(seed)
    found = _auc_of(gram, positive[None], np.ones((1, len(positive))))[0]
    drawn = [
        _auc_of(gram, positive[None], counts) for counts in _redrawn(positive, resamples, generator)
    ]
    low, high = percentiles(np.concatenate(drawn)) if drawn else (np.nan, np.nan)
    strata = of.strata[member]
    as_high = sum(
        int((_auc_of(gram, labels, np.ones_like(labels, dtype=float)) >= found - 1e-12).sum())
        for labels in _permuted(positive, strata, permutations, generator)
    )
    return {
        "direction": of.name,
        "value": float(found),
        "low": low,
        "high": high,
        "p_value": np.nan if np.isnan(found) else (1 + as_high) / (1 + permutations),
        "positive": int(positive.sum()),
        "negative": int((~positive).sum()),
    }


def _gram(values: np.ndarray) -> np.ndarray:
    wide = np.asarray(values, dtype=float)
    centred = wide - wide.mean(axis=0)  # differences only: a common shift costs digits
    return centred @ centred.T


def _auc_of(gram: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    up, down = counts * positive, counts * ~positive
    return auc(held_out_scores(gram, up, down), up, down)


def _redrawn(positive: np.ndarray, resamples: int, generator: np.random.Generator) -> Any:
    """Yield how often each prompt is drawn, `[CHUNK, n]`, both classes apart."""
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        counts = np.empty((size, len(positive)))
        for side in (positive, ~positive):
            share = np.full(side.sum(), 1 / side.sum())
            counts[:, side] = generator.multinomial(side.sum(), share, size=size)
        yield counts


def _permuted(
    positive: np.ndarray, strata: np.ndarray, permutations: int, generator: np.random.Generator
) -> Any:
    """Yield class labels shuffled within strata, `[CHUNK, n]` bool."""
    for start in range(0, permutations, CHUNK):
        labels = np.tile(positive, (min(CHUNK, permutations - start), 1))
        for stratum in np.unique(strata):
            rows = strata == stratum
            labels[:, rows] = generator.permuted(labels[:, rows], axis=1)
        yield labels


def projections(
    values: np.ndarray,
    of: Classes,
    groups: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return where each group lies along a direction: 0 and 1 are its two classes' means.

    Args:
        values: activations of all n prompts, `[n, hidden]`.
        of: the classes of the direction.
        groups: of the prompts.
        resamples: draws of the group's prompts; the direction stays.
        seed: of the draws.

    Returns:
        `direction, group, value, low, high, prompts`; members of a class by held-out scores.
    """
    scores = held_out_scores(_gram(values), of.positive.astype(float), of.negative.astype(float))
    generator, rows = np.random.default_rng(seed), []
    for group in dict.fromkeys(groups):
        of_group = scores[np.asarray(groups, dtype=object) == group]
        n = len(of_group)
        drawn = generator.multinomial(n, np.full(n, 1 / n), size=resamples) @ of_group / n
        low, high = percentiles(drawn) if resamples else (np.nan, np.nan)
        rows.append((of.name, group, of_group.mean(), low, high, n))
    return pd.DataFrame(rows, columns=["direction", "group", "value", "low", "high", "prompts"])


def cosines(
    values: np.ndarray, found: Sequence[Classes], *, resamples: int = 999, seed: int = 0
) -> pd.DataFrame:
    """Return the cosine between every two directions, with a bootstrap interval over prompts.

    Args:
        values: activations, `[n, hidden]`.
        found: the classes of each direction.
        resamples: draws of all prompts at once, so that one that both directions share is drawn
            for both; those that leave a class empty are left out.
        seed: of the draws.

    Returns:
        `direction, other, value, low, high`.
    """
    gram, n = _gram(values), len(values)
    ones = np.ones((1, n))
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    rows = []
    for one, other in combinations(found, 2):
        low, high = percentiles(_cosine(gram, one, other, drawn)) if resamples else (np.nan,) * 2
        value = float(_cosine(gram, one, other, ones)[0])
        rows.append((one.name, other.name, value, low, high))
    return pd.DataFrame(rows, columns=["direction", "other", "value", "low", "high"])


def _cosine(gram: np.ndarray, one: Classes, other: Classes, counts: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (
            (counts * c.positive) / (counts * c.positive).sum(1, keepdims=True)
            - (counts * c.negative) / (counts * c.negative).sum(1, keepdims=True)
            for c in (one, other)
        )
        dot, left, right = (
            ((a @ gram) * b).sum(1) for a, b in ((first, second), (first, first), (second, second))
        )
        return dot / np.sqrt(left * right)


def probe_accuracy(
    values: np.ndarray, labels: np.ndarray, sources: Sequence[str], *, folds: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Return how well a linear probe tells two classes apart, within and across data sets.

    A probe that has learnt which data set a prompt is from does well in cross-validation and badly
    on a source that it has not seen.

    Args:
        values: activations, `[n, hidden]`.
        labels: `[n]` bool.
        sources: the data set of each prompt.
        folds: of the stratified cross-validation.
        seed: of its folds.

    Returns:
        `held_out` (`fold`, all folds together, or `source`, all sources together), `source` (None
        for the sums), `value, low, high` (Wilson), `prompts`. A source without which only one
        class is left is not held out.
    """
    from sklearn.model_selection import StratifiedKFold

    labels, source = np.asarray(labels, dtype=bool), np.asarray(sources, dtype=object)
    smaller = int(min(labels.sum(), (~labels).sum()))
    rows = []
    if smaller > 1:
        split = StratifiedKFold(min(folds, smaller), shuffle=True, random_state=seed)
        right = np.concatenate(
            [_right(values, labels, *two) for two in split.split(values, labels)]
        )
        rows.append(("fold", None, *_share(right)))
    across = []
    for name in dict.fromkeys(source):
        inside = source == name
        if len(set(labels[~inside])) == 2:
            right = _right(values, labels, np.flatnonzero(~inside), np.flatnonzero(inside))
            across.append(right)
            rows.append(("source", name, *_share(right)))
    if across:
        rows.append(("source", None, *_share(np.concatenate(across))))
    return pd.DataFrame(rows, columns=["held_out", "source", "value", "low", "high", "prompts"])


def _right(
    values: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return probe.fit(values[train], labels[train]).predict(values[test]) == labels[test]


def _share(right: np.ndarray) -> tuple[float, float, float, int]:
    return float(right.mean()), *wilson(right.sum(), len(right)), len(right)


def drift(
    before: np.ndarray, after: np.ndarray, found: Sequence[Classes], groups: Sequence[str]
) -> pd.DataFrame:
    """Return how directions turn and groups move between two models with the same prompts.

    Args:
        before: activations of the first, `[n, hidden]`.
        after: of the second.
        found: the classes of each direction, the same for both.
        groups: of the prompts.

    Returns:
        `what, name, value`: `direction`, the cosine of a direction before and after; `centroid`,
        the distance that a group's mean moved over the mean distance of its prompts from it before.
    """
    rows: list[tuple[str, str, float]] = []
    for one in found:
        first, second = direction(before, one), direction(after, one)
        cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
        rows.append(("direction", one.name, float(cosine)))
    group = np.asarray(groups, dtype=object)
    for name in dict.fromkeys(groups):
        first, second = (
            np.asarray(values, dtype=float)[group == name] for values in (before, after)
        )
        spread = np.linalg.norm(first - first.mean(axis=0), axis=1).mean()
        moved = np.linalg.norm(second.mean(axis=0) - first.mean(axis=0))
        rows.append(("centroid", name, float(moved / spread) if spread else np.nan))
    return pd.DataFrame(rows, columns=["what", "name", "value"])
