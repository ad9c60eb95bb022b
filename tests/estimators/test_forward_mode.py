import pytest
import torch
from architectures import (
    ARCHITECTURES,
    build,
    make_probes,
    with_lora,
    worst_block_error,
)

from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.forward_mode import ForwardMode, differentiable_forwards
from ntkprobe.models.precision import Float64Throughout


class TestAgreement:
    # Largest error of a sweep over all architectures: 2e-6 in float32, 7e-15 in float64.
    rtol_float32, rtol_float64 = 1e-5, 1e-13

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_blocks_are_the_definitions(self, name):
        model = build(name)
        probes = make_probes(model)
        found = ForwardMode()(model, probes)
        assert worst_block_error(found, Dense()(model, probes)) <= self.rtol_float32

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_blocks_are_the_definitions_in_float64(self, name):
        model = build(name, torch.float64)
        probes = make_probes(model)
        with Float64Throughout():
            found = ForwardMode(columns_at_once=3)(model, probes)
            assert worst_block_error(found, Dense()(model, probes)) <= self.rtol_float64

    def test_untying_the_weights_changes_the_kernel(self):
        tied, untied = build("qwen2-tied"), build("qwen2-tied")
        untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
        probes = make_probes(tied)
        assert worst_block_error(ForwardMode()(untied, probes), Dense()(tied, probes)) > 0.01

    @pytest.mark.parametrize("settings", [{"columns_at_once": 2}, {"batch_size": 1}])
    def test_columns_and_prompts_at_once_change_nothing(self, settings):
        model = build("gpt2")
        probes = make_probes(model)
        found = ForwardMode(**settings)(model, probes)
        assert worst_block_error(found, ForwardMode()(model, probes)) <= self.rtol_float32


class TestSwitching:
    def test_fused_attention_gives_way_and_comes_back(self):
        model = build("llama")
        model.set_attn_implementation("sdpa")
        probes = make_probes(model)
        ForwardMode()(model, probes)
        assert model.config._attn_implementation == "sdpa"

    def test_grouped_experts_give_way_and_come_back(self):
        model = build("mixtral")
        model.set_experts_implementation("grouped_mm")
        ForwardMode()(model, make_probes(model))
        assert model.config._experts_implementation == "grouped_mm"

    def test_an_adapters_base_model_is_switched_too(self):
        model = with_lora(build("llama"))
        model.base_model.model.set_attn_implementation("sdpa")
        with differentiable_forwards(model):
            assert model.config._attn_implementation == "eager"
        assert model.config._attn_implementation == "sdpa"

    def test_gradient_checkpointing_is_no_obstacle_and_stays_on(self):
        model = build("llama")
        model.gradient_checkpointing_enable()
        hooks = len(model.get_input_embeddings()._forward_hooks)
        probes = make_probes(model)
        found = ForwardMode()(model, probes)
        assert worst_block_error(found, Dense()(model, probes)) <= TestAgreement.rtol_float32
        assert hooks == len(model.get_input_embeddings()._forward_hooks) > 0

    def test_what_has_no_forward_derivative_is_refused(self):
        model = build("llama")
        fused = torch.nn.functional.scaled_dot_product_attention
        with pytest.raises(UserError, match="take the gram estimator"):
            with differentiable_forwards(model):
                q = torch.randn(1, 1, 2, 4)
                torch.func.jvp(lambda q: fused(q, q, q), (q,), (q,))

    def test_other_errors_come_through_as_they_are(self):
        with pytest.raises(RuntimeError, match="something else"):
            with differentiable_forwards(build("llama")):
                raise RuntimeError("something else")

    def test_parameters_get_no_gradient_and_keep_their_flags(self):
        model = build("llama").requires_grad_(False)
        ForwardMode()(model, make_probes(model))
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
