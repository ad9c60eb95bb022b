"""The decoding methods as their papers' formulas say, in plain Python: slow, and written apart.

No cache, no batch, no padding. A method here takes one row's
logits as lists of float and returns a list of scores.
"""

import math

import torch

from ntkprobe.models.precision import Float64Throughout

NOTHING = -math.inf


def logits_along(model, start, answer):
    """Return the logits before every token of an answer, from one pass over the whole text."""
    with torch.no_grad(), Float64Throughout():
        logits = model(torch.tensor([[*start, *answer]]), use_cache=False).logits[0]
    return logits[len(start) - 1 : -1].tolist()


def softmax(logits):
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    total = sum(powers)
    return [power / total for power in powers]


def ranking(values):
    """Return the tokens, the most probable first."""
    return sorted(range(len(values)), key=lambda token: -values[token])


def adacd(z, z_p, alpha=4.5, agreement=0.9, plausibility=0.01, space="logit"):
    p, p_p = softmax(z), softmax(z_p)
    agreed = 1 / (1 + ranking(z).index(ranking(z_p)[0])) >= agreement
    sign = 1 if agreed and max(p) >= agreement * max(p_p) else -1
    if space == "logit":
        mixed = [b + sign * alpha * (b - a) for a, b in zip(z, z_p, strict=True)]
    else:
        pushed = softmax([b - a for a, b in zip(z, z_p, strict=True)])
        mixed = [b + sign * alpha * d for b, d in zip(p_p, pushed, strict=True)]
    least = plausibility * max(p)
    kept = [m if q >= least else NOTHING for m, q in zip(mixed, p, strict=True)]
    if space == "logit" or max(kept) <= 0:
        return kept
    return [math.log(m) if m > 0 else NOTHING for m in kept]


def self_cd(z, z_s, ratio=2.5):
    return [b - ratio * (b - a) for a, b in zip(z, z_s, strict=True)]


def prompt(z, z_p):
    return z_p


def shared(p, q, count):
    """Return the tokens of the first k at which both top-k have `count` in common."""
    first, second = ranking(p), ranking(q)
    for k in range(count, len(p) + 1):
        both = set(first[:k]) & set(second[:k])
        if len(both) >= count:
            return both
    return set(first)


def mixed(p, q, weight, tokens):
    scores = [max(a + weight * (b - a), 1e-8) for a, b in zip(p, q, strict=True)]
    return [math.log(s) if token in tokens else NOTHING for token, s in enumerate(scores)]


def safe_decoding(z, z_e, alpha=3.0, common=5):
    p, q = softmax(z), softmax(z_e)
    return mixed(p, q, alpha, shared(p, q, common))


class Ssd:
    """The two modes of one answer."""

    def __init__(self, first=0.5, second=0.5, common=10, window=7, threshold=0.6):
        self.start = (first, threshold)
        self.first, self.threshold, self.second = first, threshold, second
        self.common, self.window, self.mode, self.log = common, window, 1, []

    def __call__(self, z, z_d):
        p, q = softmax(z), softmax(z_d)
        self.draft = ranking(q)[0]
        if self.mode == 2:
            union = set(ranking(p)[: self.common]) | set(ranking(q)[: self.common])
            return mixed(p, q, self.second, union)
        tokens = shared(p, q, self.common)
        best = ranking(p)[0]
        return mixed(p, q, self.first, tokens if best in tokens else {best})

    def chose(self, token):
        self.log.append(token == self.draft)
        if len(self.log) % self.window:
            return
        mode = 2 if sum(self.log[-self.window :]) / self.window < self.threshold else 1
        if mode == self.mode:
            self.threshold = max(self.threshold - 0.1, 0)
            if mode == 1:
                self.first = max(self.first - 0.15, 0.3)
        else:
            self.first, self.threshold = self.start
        self.mode = mode
