"""One check of the rules for an architecture, and none that showed nothing taken for one."""

import pytest
import torch
from architectures import build, make_probes, perturbed, with_lora, worst_block_error

from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.gram import Gram, algorithm


@pytest.fixture
def tried(monkeypatch):
    """The models that a trial was made of."""
    found = []
    original = algorithm.plan_backward

    def noted(schedule, *rest):
        found.append(schedule)
        return original(schedule, *rest)

    monkeypatch.setattr(algorithm, "plan_backward", noted)
    return found


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_an_architecture_is_tried_once_by_one_estimator(name, tried):
    gram = Gram()
    for seed in (0, 1, 2):
        model = build(name, seed=seed)
        probes = make_probes(model)
        assert worst_block_error(gram(model, probes), Dense()(model, probes)) < 1e-4
    assert len(tried) == 1
    Gram()(model, probes)
    assert len(tried) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        lambda: (build("llama", num_hidden_layers=3), "all"),
        lambda: (build("llama"), "last:1"),
        lambda: (build("llama", torch.float64), "all"),
        lambda: (build("qwen2-tied"), "all"),
        lambda: (with_lora(build("llama")), "lora"),
    ],
)
def test_another_architecture_selection_or_precision_is_tried_again(other, tried):
    gram, model = Gram(), build("llama")
    gram(model, make_probes(model))
    model, parameters = other()
    probes = make_probes(model)
    found = gram(model, probes, parameters)
    assert len(tried) == 2
    assert worst_block_error(found, Dense()(model, probes, parameters)) < 1e-4


def test_a_hook_or_a_setting_of_a_module_makes_another_architecture(tried):
    gram, model = Gram(), build("llama")
    probes = make_probes(model)
    gram(model, probes)
    model.model.layers[0].self_attn.scaling *= 2
    gram(model, probes)
    handle = model.model.layers[0].register_forward_hook(lambda *_: None)
    gram(model, probes)
    handle.remove()
    gram(model, probes)
    assert len(tried) == 3


def test_rules_that_a_trial_did_not_show_at_work_are_tried_again_with_other_weights(tried):
    gram, model = Gram(), with_lora(build("llama"))
    ups = [p for n, p in model.named_parameters() if "lora_B" in n]
    for parameter in ups:
        parameter.data.zero_()  # as a new adapter's, so that no A has a gradient
    probes = make_probes(model)
    gram(model, probes, "lora")
    gram(model, probes, "lora")
    assert len(tried) == 1  # of these very weights it holds
    with torch.no_grad():
        for parameter in ups:
            parameter.add_(0.3)
    found = gram(model, probes, "lora")
    assert len(tried) == 2
    assert worst_block_error(found, Dense()(model, probes, "lora")) < 1e-4
    other = perturbed(with_lora(build("llama", seed=3)), seed=4)
    gram(other, make_probes(other), "lora")
    assert len(tried) == 2  # now all rules were shown


def test_what_a_rule_was_left_to_is_left_to_it_again(tried, monkeypatch):
    gram, model = Gram(), build("llama")
    probes = make_probes(model)
    first = gram.coverage(model, probes)
    assert gram.coverage(model, probes) == first and len(tried) == 1
