"""The line that says how each parameter of the kernel is handled."""

import torch
from architectures import build
from tiny_runs import TEXTS, tiny_model, tiny_tokenizer
from torch import nn

from ntkprobe import PromptSet
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.gram import Gram
from ntkprobe.measurement import encode
from ntkprobe.watcher.coverage import Coverage, coverage

ENCODED = encode(tiny_tokenizer(), PromptSet.from_texts(TEXTS), "raw", None)


class Odd(nn.Module):
    """Uses its weights as no rule knows, and leaves one unused."""

    def __init__(self):
        super().__init__()
        self.raised = nn.Parameter(torch.rand(24) + 0.5)
        self.spare = nn.Parameter(torch.rand(3))

    def forward(self, x):
        return x * torch.exp(self.raised)


def test_every_parameter_of_a_dense_model_has_a_rule():
    model = tiny_model()
    found = coverage(Gram(), model, ENCODED, "all")
    assert sum(found.handled.values()) == len(list(model.parameters()))
    assert found.numbers == sum(p.numel() for p in model.parameters())
    assert found.share_without_rule == 0 and "by rule; none by autograd" in str(found)


def test_the_share_without_a_rule_is_of_numbers_not_of_tensors():
    model = build("llama")
    model.model.layers[1].mlp.act_fn = nn.Sequential(nn.SiLU(), Odd()).eval()
    found = coverage(Gram(), model, ENCODED, "all")
    assert found.handled["autograd"] == found.handled["unused"] == 1
    assert found.share_without_rule == 24 / sum(p.numel() for p in model.parameters())
    assert "1 by autograd (" in str(found) and str(found).endswith("; 1 unused")


def test_only_selected_parameters_are_covered():
    model = tiny_model()
    found = coverage(Gram(), model, ENCODED, "norm")
    assert (found.handled, found.numbers) == ({"vector": 1}, model.model.norm.weight.numel())


def test_an_estimator_that_has_no_rules_has_no_coverage():
    assert coverage(Dense(), tiny_model(), ENCODED, "all") is None


def test_the_line_counts_one_and_many():
    handled = {"matrix": 120, "vector": 49, "table": 1, "autograd": 2}
    assert str(Coverage(handled, 1_000_000, 1_200)) == (
        "kernel over 1,000,000 parameters: 120 matrices, 49 vectors, 1 table by rule;"
        " 2 by autograd (0.12 % of the numbers)"
    )
