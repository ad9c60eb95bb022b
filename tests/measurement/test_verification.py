from dataclasses import dataclass

import pytest
import torch
from architectures import ARCHITECTURES, build, ragged_prompts, with_lora

from ntkprobe.estimators.dense import Dense, sum_over
from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.forward_mode import ForwardMode
from ntkprobe.estimators.gram import Gram
from ntkprobe.measurement.verification import WrongKernel, verify_pair

PAIR = (ragged_prompts()[1], ragged_prompts()[2])


@dataclass(frozen=True)
class Forgetful:
    """The definition without one parameter."""

    forgotten: str

    def __call__(self, model, probes, parameters="all"):
        """Return K without it."""
        shares = Dense().by_parameter(model, probes, parameters)
        assert shares.pop(self.forgotten) is not None
        return sum_over(shares)


class Untied:
    """The definition for a copy of the model whose tied matrix is two."""

    def __call__(self, model, probes, parameters="all"):
        """Return K without the cross terms."""
        untied = build("qwen2-tied")
        untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
        return Dense()(untied, probes, parameters)


class TestPassing:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_the_default_estimator_passes_on_every_architecture(self, name):
        found = verify_pair(Gram(), build(name), PAIR)
        assert found.relative_error <= 1e-5

    @pytest.mark.parametrize("estimator", [Dense(), ForwardMode(), FiniteDifference(step="unit")])
    def test_every_estimator_passes(self, estimator):
        model = build("gpt_neox")
        found = verify_pair(estimator, model, PAIR)
        assert found.parameters == sum(p.numel() for p in model.parameters())

    @pytest.mark.parametrize("selection", ["all", "lora", "last:1+head"])
    def test_selections_and_adapters_pass(self, selection):
        verify_pair(Dense(), with_lora(build("llama")), PAIR, selection)

    def test_a_prompt_with_itself_passes(self):
        verify_pair(Dense(), build("llama"), PAIR[:1] * 2)

    def test_another_seed_reads_something_else(self):
        errors = {
            verify_pair(Dense(), build("llama"), PAIR, seed=s).relative_error for s in range(3)
        }
        assert len(errors) == 3


class TestFailing:
    @pytest.mark.parametrize(
        "forgotten",
        [
            "model.norm.weight",
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.1.mlp.down_proj.weight",
            "model.layers.1.input_layernorm.weight",
            "model.layers.0.self_attn.v_proj.bias",
        ],
    )
    def test_a_missed_parameter_is_found(self, forgotten):
        with pytest.raises(WrongKernel, match="a parameter is missing"):
            verify_pair(Forgetful(forgotten), build("qwen2-tied"), PAIR)

    def test_missed_cross_terms_of_a_tied_matrix_are_found(self):
        with pytest.raises(WrongKernel):
            verify_pair(Untied(), build("qwen2-tied"), PAIR)

    def test_another_selection_is_found(self):
        @dataclass(frozen=True)
        class Narrow:
            def __call__(self, model, probes, parameters="all"):
                return Dense()(model, probes, "last:1")

        with pytest.raises(WrongKernel):
            verify_pair(Narrow(), build("llama"), PAIR)

    def test_finite_differences_with_too_long_a_step_are_found(self):
        with pytest.warns(UserWarning), pytest.raises(WrongKernel, match="too inaccurate"):
            verify_pair(FiniteDifference(eps=0.1), build("llama"), PAIR)

    def test_a_kernel_that_is_not_a_number_is_found(self):
        @dataclass(frozen=True)
        class Broken:
            def __call__(self, model, probes, parameters="all"):
                return Dense()(model, probes) * torch.nan

        with pytest.raises(WrongKernel):
            verify_pair(Broken(), build("llama"), PAIR)
