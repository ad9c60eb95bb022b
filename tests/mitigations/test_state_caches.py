"""Mitigated answers of models whose cache is something else than keys and values alone."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from every_family import tiny

from ntkprobe.mitigations import Decoding, applied
from ntkprobe.mitigations.adacd import Adacd
from ntkprobe.mitigations.base import identity
from ntkprobe.mitigations.branches import Branch
from ntkprobe.mitigations.contrastive import ContrastiveProcessor, stateless
from ntkprobe.mitigations.scans import Scans
from ntkprobe.models.architecture import (
    decoder_layers,
    hidden_state,
    hooked,
    with_output_state,
)
from ntkprobe.models.generation import generate_answers

ENDING, MESSAGE, STEPS = [5, 6], [7, 8, 9], 6
PROMPTS = [[*text, *ENDING] for text in ([3, 1, 4, 1, 9, 2], [3, 1, 8], [3, 1, 7, 7, 2])]


class Spelled:
    """A tokenizer that ends nothing and writes ids as numbers."""

    eos_token_id = pad_token_id = None
    all_special_ids: tuple[int, ...] = ()

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


@dataclass(frozen=True, eq=False)
class Told(Decoding):
    """AdaCD with a message of three tokens in front of every prompt."""

    source: ClassVar[str] = "the tests"

    def logits_processor(self, model, tokenizer):
        def opened(rows):
            return Branch(model, [MESSAGE + row for row in rows])

        return ContrastiveProcessor(tokenizer, opened, stateless(Adacd().combine), STEPS - 2)


def answers(model, method, batch_size):
    with applied(method, model, Spelled()) as processors:
        ids = [torch.tensor(ids) for ids in PROMPTS]
        how = dict(max_new_tokens=STEPS, batch_size=batch_size, logits_processor=processors)
        found = generate_answers(model, Spelled(), ids, **how)
    return [[int(word) for word in answer.split()] for answer in found]


@torch.no_grad()
def last(model, text):
    return model(torch.tensor([text]), use_cache=False).logits[:, -1]


@pytest.mark.parametrize("family", ["llama", "minimax"])
def test_contrasted_answers_are_those_of_whole_passes(family):
    model = tiny(family, torch.float32)
    for prompt, answer in zip(PROMPTS, answers(model, Told(), 3), strict=True):
        for step, token in enumerate(answer):
            text = [*prompt, *answer[:step]]
            scores = last(model, text)
            if step < STEPS - 2:
                scores = Adacd().combine(scores, last(model, MESSAGE + text))
            assert token == int(scores.argmax())


def scans(model):
    """Return a fitted method after which some prompts count as harmful, and others do not."""
    torch.manual_seed(0)
    vectors, transitions = torch.randn(2, len(decoder_layers(model)), 16)
    method = Scans(
        weight=3.0,
        layers=(0.0, 1.0),
        classified=(0.0, 1.0),
        threshold=0.0,
        vectors=torch.nn.functional.normalize(vectors, dim=-1),
        transitions=transitions,
        normed=True,
        ending=torch.tensor(ENDING),
        word=torch.tensor([11]),
        fitted_on=identity(model),
    )
    likeness = method.likeness(model, [torch.tensor(ids) for ids in PROMPTS])
    threshold = float(likeness.median())
    object.__setattr__(method, "threshold", threshold)
    return method, [1 if value >= threshold else -1 for value in likeness.tolist()]


def pushes(model, method, sign, end):
    """Return hooks by which a whole pass is steered from the instruction's end on."""

    def push(at):
        def pushed(module, inputs, output):
            state = hidden_state(output).clone()
            state[:, end:] += method.weight * sign * method.vectors[at]
            return with_output_state(output, state)

        return pushed

    return [(block, push(at)) for at, block in enumerate(decoder_layers(model))]


@pytest.mark.parametrize("batch_size", [3, 1])
@pytest.mark.parametrize("family", ["mamba", "rwkv"])
def test_scans_steers_a_model_that_keeps_states_as_in_whole_passes(family, batch_size):
    model = tiny(family, torch.float32)
    method, signs = scans(model)
    assert set(signs) == {1, -1}
    found = answers(model, method, batch_size)
    for prompt, sign, answer in zip(PROMPTS, signs, found, strict=True):
        with hooked(pushes(model, method, sign, len(prompt) - 1)):
            texts = [[*prompt, *answer[:step]] for step in range(STEPS)]
            assert answer == [int(last(model, text).argmax()) for text in texts]
