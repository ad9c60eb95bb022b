"""Gradients of each sample from one pass are those of a pass per sample, or are not used."""

import pytest
import torch
from tiny_runs import tiny_adapter, tiny_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from ntkprobe.kernel import last_logits
from ntkprobe.models.gradients import PerSampleFactors, matrix_shape
from ntkprobe.models.parameters import ParameterSelection

PROMPTS = [torch.tensor(row) for row in ([3, 4, 5, 6], [7, 8], [9, 3, 11], [4, 4, 4, 4, 5])]


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes)).eval()


MODELS = {
    "tied": (lambda: tiny_model(), "all"),
    "untied": (lambda: tiny_model(tie_word_embeddings=False), "all"),
    "lora": (lambda: tiny_adapter(tiny_model(), 1), "lora"),
    "gpt2": (gpt2, "all"),
}


def parts(model, selection):
    chosen = ParameterSelection.parse(selection).parameters(model)
    tokens = torch.tensor([1, 5])

    def forward(rows):
        return last_logits(model, [PROMPTS[row] for row in rows])[:, tokens]

    return chosen, forward


def whole(found, chosen):
    """Return the samples' gradients, formed and summed over the uses."""
    return {n: sum(use.whole().flatten(1) for use in found[n]) for n in chosen}


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_the_gradients_of_each_sample_alone(name):
    build, selection = MODELS[name]
    model = build().double()
    chosen, forward = parts(model, selection)
    together = PerSampleFactors(model, chosen)
    for column, found in enumerate(together(forward, range(len(PROMPTS)))):
        one_by_one = PerSampleFactors(model, chosen)
        one_by_one.batched = False
        apart = list(one_by_one(forward, range(len(PROMPTS))))
        expected = whole(apart[column], chosen)
        for key, value in whole(found, chosen).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-10)
    # GPT-2's position embedding sees one row for the whole batch.
    assert together.batched is (name != "gpt2")


def test_products_and_projections_are_those_of_the_formed_gradients():
    model = tiny_model().double()
    chosen, forward = parts(model, "all")
    found = next(PerSampleFactors(model, chosen)(forward, range(len(PROMPTS))))
    generator = torch.Generator().manual_seed(0)
    for name, uses in found.items():
        rows, columns = matrix_shape(chosen[name])
        held = torch.randn(3, *chosen[name].shape, generator=generator, dtype=torch.float64)
        left = torch.randn(2, rows, generator=generator, dtype=torch.float64)
        right = torch.randn(4, columns, generator=generator, dtype=torch.float64)
        for use in uses:
            formed = use.whole()
            torch.testing.assert_close(use.inner(held), formed.flatten(1) @ held.flatten(1).T)
            matrix = formed.reshape(len(formed), rows, columns)
            torch.testing.assert_close(use.projected(left, right), left @ matrix @ right.T)


class Outside(nn.Module):
    """Uses a linear layer's weight besides calling the layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) + x @ self.layer.weight


def test_a_parameter_used_outside_its_module_is_noticed_and_still_right():
    torch.manual_seed(0)
    model, x = Outside().double(), torch.randn(3, 2, 4, dtype=torch.float64)
    chosen = dict(model.named_parameters())
    gradients = PerSampleFactors(model, chosen)

    def forward(rows):
        return model(x[list(rows)]).square().sum((1, 2))[:, None]

    found = whole(next(gradients(forward, range(3))), chosen)
    assert gradients.batched is False
    expected = torch.autograd.grad(forward([1]).sum(), model.layer.weight)[0]
    torch.testing.assert_close(found["layer.weight"][1], expected.flatten())
