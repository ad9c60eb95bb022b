"""The smallest mitigations there can be: one that steers, one that changes logits."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ntkprobe.mitigations import Decoding, Steering, learned
from ntkprobe.mitigations.base import identity
from ntkprobe.models.architecture import decoder_layers


@dataclass(frozen=True, eq=False)
class Push(Steering):
    weight: float = 1.0
    vector: Tensor | None = learned()

    source: ClassVar[str] = "the tests"

    def fit(self, model, tokenizer, prompts):
        return replace(self, vector=torch.ones(16), fitted_on=identity(model))

    def hooks(self, model):
        return [(decoder_layers(model)[0], lambda module, inputs, output: output + self.weight)]


class Shift(LogitsProcessor):
    def __init__(self, by):
        self.by = by

    def __call__(self, input_ids, scores):
        return scores + self.by * torch.arange(scores.shape[-1])


@dataclass(frozen=True, eq=False)
class Tilt(Decoding):
    by: float = 1.0

    source: ClassVar[str] = "the tests"

    def logits_processor(self, model, tokenizer):
        return Shift(self.by)
