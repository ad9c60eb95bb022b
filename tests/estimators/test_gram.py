"""The Gram estimator against the dense oracle: every architecture, adapter, dtype and odd use."""

import copy
from contextlib import nullcontext

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    build,
    make_probes,
    ragged_prompts,
    with_lora,
    worst_block_error,
)
from torch import nn
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense, jacobians
from ntkprobe.estimators.gram import (
    Gram,
    algorithm,
    backward,
    contractions,
    gradient_rules,
    inner_products,
    microbatches,
)
from ntkprobe.kernel import Probe, norms
from ntkprobe.models.architecture import decoder_layers, hooked
from ntkprobe.models.precision import Float64Throughout


def agree(model, parameters="all", tolerance=1e-4, estimator=None, probes=None):
    """Assert that Gram's blocks are Dense's."""
    probes = probes or make_probes(model)
    found = (estimator or Gram())(model, probes, parameters)
    assert worst_block_error(found, Dense()(model, probes, parameters)) <= tolerance


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_block_is_exact_in_float64(name):
    with Float64Throughout():
        agree(build(name, torch.float64), tolerance=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_block_is_exact_in_float32_for_several_micro_batches(name):
    agree(build(name), estimator=Gram(batch_size=3))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_has_a_rule(name):
    model = build(name)
    handled = Gram().coverage(model, make_probes(model))
    assert set(handled.values()) <= {"matrix", "table", "vector"}
    assert len(handled) == len(list(model.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2-tied", "gemma2", "opt", "mixtral"])
def test_parts_are_exact_and_sum_to_the_kernel(name):
    model = build(name, torch.float64)
    probes = make_probes(model)
    with Float64Throughout():
        found, expected = Gram().by_part(model, probes), Dense().by_part(model, probes)
        whole = Gram()(model, probes)
    assert set(found) == set(expected)
    assert all((found[p] - expected[p]).norm() <= 1e-9 * whole.norm() for p in expected)
    torch.testing.assert_close(sum(found.values()), whole)


@pytest.mark.parametrize("name", ["qwen2-tied", "qwen2-untied", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize(
    "parameters", ["last:1+head", "below:1", "embed", "norm", "head", "re:proj|c_fc+last:1"]
)
def test_a_selection_is_exact(name, parameters):
    agree(build(name), parameters)


def alone(model, probes, selections, estimator=None):
    """Return what each selection's own pass gives."""
    return {s: (estimator or Dense())(model, probes, s) for s in selections}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2-tied", "gpt2", "mixtral"])
def test_selections_of_one_pass_are_what_each_is_alone(name):
    model = build(name, torch.float64)
    probes = make_probes(model)
    selections = ["last:1+head", "below:1", "head", "norm", "re:proj|c_fc", "all"]
    with Float64Throughout():
        found = Gram(batch_size=3).by_selection(model, probes, selections)
        wanted = alone(model, probes, selections)
    assert list(found) == selections
    assert all(worst_block_error(found[s], wanted[s]) <= 1e-9 for s in selections)


def test_selections_that_share_a_parameter_each_count_it_whole():
    model = build("qwen2-tied", torch.float64)
    probes = make_probes(model)
    with Float64Throughout():
        found = Gram().by_selection(
            model, probes, ["below:1", "last:1+head", "head", "all", "norm"]
        )
    both = found["below:1"] + found["last:1+head"] + found["norm"]
    torch.testing.assert_close(both - found["head"], found["all"])
    assert worst_block_error(both, found["all"]) > 0.1


def test_several_selections_take_one_backward_pass(monkeypatch):
    constructed = []

    class Counted(microbatches.MicroBatches):
        def __init__(self, *given):
            constructed.append(given)
            super().__init__(*given)

    monkeypatch.setattr(algorithm, "MicroBatches", Counted)
    model = build("llama")
    Gram().by_selection(model, make_probes(model), ["below:1", "last:1", "all"])
    assert len(constructed) == 1


@pytest.mark.parametrize("changes", [{}, {"modules_to_save": ["lm_head"]}])
def test_the_base_and_the_adapter_are_kept_apart_in_one_pass(changes):
    model = with_lora(build("llama"), ["q_proj", "v_proj"], **changes)
    probes = make_probes(model)
    found = Gram().by_selection(model, probes, ["all", "lora", "all+lora"])
    wanted = alone(model, probes, ["all", "lora", "all+lora"])
    assert all(worst_block_error(found[s], wanted[s]) <= 1e-4 for s in wanted)
    merged = Gram()(model.merge_and_unload(), probes)
    assert worst_block_error(found["all"], merged) <= 1e-4
    assert worst_block_error(found["all+lora"], found["all"]) > 0.01


def test_an_adapter_counted_besides_the_base_can_be_several_times_as_large_where_b_is_zero():
    model = with_lora(build("llama", seed=2))
    for name, parameter in model.named_parameters():
        parameter.data.mul_("lora_B" not in name)
    found = Gram().by_selection(model, make_probes(model), ["all", "all+lora"])
    assert (norms(found["all+lora"]) / norms(found["all"])).max() > 3


def test_no_selections_and_one_of_nothing_are_refused():
    model = build("llama")
    with pytest.raises(UserError, match="no selections: give at least one"):
        Gram().by_selection(model, make_probes(model), [])
    with pytest.raises(UserError, match="'lora': 'lora' selects nothing here"):
        Gram().by_selection(model, make_probes(model), ["all", "lora"])


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
@pytest.mark.parametrize("name", ["llama", "qwen2-tied"])
def test_an_adapters_own_kernel_is_exact(name, targets):
    model = with_lora(build(name), targets)
    agree(model, "lora")
    agree(model, "lora+last:1")


def test_an_adapters_kernel_on_gpt2s_transposed_matrices_is_exact():
    agree(with_lora(build("gpt2"), ["c_attn", "c_fc"], fan_in_fan_out=True), "lora")


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_all_is_the_same_merged_or_not(targets):
    model = with_lora(build("qwen2-tied"), targets)
    probes = make_probes(model)
    beside = Gram()(model, probes)
    assert worst_block_error(Gram()(model.merge_and_unload(), probes), beside) < 1e-4


def test_all_is_not_the_adapters_kernel():
    model = with_lora(build("qwen2-tied"))
    probes = make_probes(model)
    assert worst_block_error(Gram()(model, probes, "lora"), Gram()(model, probes)) > 0.1


def test_a_head_trained_whole_beside_an_adapter_counts_merged():
    model = with_lora(build("llama"), ["q_proj"], modules_to_save=["lm_head"])
    model.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(1.5)
    agree(model), agree(model, "lora"), agree(model, "head")
    probes = make_probes(model)
    beside = Gram()(model, probes)
    assert worst_block_error(Gram()(model.merge_and_unload(), probes), beside) < 1e-4


def test_gradient_checkpointing_changes_nothing():
    model = build("llama")
    probes = make_probes(model)
    plain = Gram()(model, probes)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    assert worst_block_error(Gram()(model, probes), plain) < 1e-6


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_mixture_is_exact_under_the_default_experts_and_keeps_them(name):
    model = build(name)
    model.set_experts_implementation("grouped_mm")
    agree(model)
    assert model.config._experts_implementation == "grouped_mm"


def test_the_attention_implementation_changes_nothing():
    model = build("qwen2-tied")
    probes = make_probes(model)
    eager = Gram()(model, probes)
    model.set_attn_implementation("sdpa")
    assert worst_block_error(Gram()(model, probes), eager) < 1e-5


def test_without_the_cross_terms_a_tied_matrix_would_be_far_off():
    tied = build("qwen2-tied")
    probes = make_probes(tied)
    untied = build("qwen2-untied")
    untied.load_state_dict(tied.state_dict())
    assert worst_block_error(Gram()(untied, probes), Gram()(tied, probes)) > 0.1


def test_a_rule_that_drops_the_cross_terms_is_detected(monkeypatch):
    right = inner_products.matrix_lookup_product
    monkeypatch.setattr(inner_products, "matrix_lookup_product", lambda p, q: 0 * right(p, q))
    model = build("qwen2-tied")
    assert Gram().coverage(model, make_probes(model))["model.embed_tokens.weight"] == "autograd"
    agree(model)


def test_a_rule_that_is_wrong_is_detected(monkeypatch):
    wrong = {
        "mul": lambda call: gradient_rules.added_vector_uses(call.find(call.args[0]), call.out)
    }
    monkeypatch.setattr(gradient_rules, "RULES", gradient_rules.RULES | wrong)
    model = build("llama")
    handled = Gram().coverage(model, make_probes(model))
    assert {name for name, how in handled.items() if how == "autograd"} == {
        name for name in handled if "norm" in name
    }
    agree(model)


def test_a_matrix_used_by_two_blocks_counts_both_uses_and_their_cross_terms():
    model = build("llama")
    first, second = decoder_layers(model)
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    agree(model)


def test_a_block_used_twice_counts_both_uses_and_their_cross_terms():
    model = build("llama")
    model.model.layers[1] = model.model.layers[0]
    agree(model)


def test_a_module_used_twice_in_a_pass_counts_both_uses_and_their_cross_terms():
    class Twice(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return x + self.inner(self.inner(x))

    model = build("llama")
    block = model.model.layers[0]
    block.mlp = Twice(block.mlp).eval()
    agree(model)


class Odd(nn.Module):
    """Uses its weights as no rule knows: squared, and exponentiated."""

    def __init__(self, width):
        super().__init__()
        self.squared = nn.Parameter(torch.rand(width) + 0.5)
        self.raised = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return x * self.squared.square() + x * torch.exp(self.raised)


def test_a_parameter_without_a_rule_falls_back_to_autograd():
    model = build("llama")
    model.model.layers[1].mlp.act_fn = nn.Sequential(nn.SiLU(), Odd(24)).eval()
    handled = Gram().coverage(model, make_probes(model))
    assert [n for n, how in handled.items() if how == "autograd"] == [
        "model.layers.1.mlp.act_fn.1.squared",
        "model.layers.1.mlp.act_fn.1.raised",
    ]
    agree(model, estimator=Gram(batch_size=3))
    agree(model, "re:act_fn")


def test_a_parameter_that_nothing_uses_counts_nothing():
    model = build("llama")
    model.model.layers[0].spare = nn.Linear(2, 2)
    assert Gram().coverage(model, make_probes(model))["model.layers.0.spare.bias"] == "unused"
    agree(model)
    probes = make_probes(model)
    assert not Gram()(model, probes, "re:spare").any()


class Experts(nn.Module):
    """Experts as modules of their own, each run on the rows that choose it, if any."""

    def __init__(self, width, count=6):
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.each = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count))

    def forward(self, x):
        rows = x.flatten(0, 1)
        weights, chosen = self.router(rows).softmax(-1).max(-1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.each):
            index = torch.where(chosen == number)[0]
            if len(index):
                out.index_add_(0, index, expert(rows[index]) * weights[index, None])
        return out.view_as(x)


class Late(nn.Module):
    """Uses its weights only in longer sequences: one by a rule, one as no rule knows."""

    def __init__(self, inner, width):
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.raised = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        out = self.inner(x)
        return out * self.scale * self.raised.exp() if x.shape[1] > 5 else out


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, "auto"])
def test_an_expert_that_the_two_prompts_of_the_rule_check_do_not_reach_is_counted(size):
    torch.manual_seed(3)
    model = build("llama")
    model.model.layers[0].mlp = Experts(16).eval()
    for parameter in model.model.layers[0].mlp.parameters():
        nn.init.normal_(parameter, std=0.5)
    probes, estimator = make_probes(model, lengths=(3, 3, 9, 12)), Gram(batch_size=size)
    handled = estimator.coverage(model, probes)
    assert "unused" in {how for name, how in handled.items() if "each" in name}
    agree(model, estimator=estimator, probes=probes)
    expected = Dense().by_parameter(model, probes)
    for name in (n for n in expected if "each" in n):
        found = estimator(model, probes, f"re:{name}")
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)


def test_the_expert_would_be_missing_were_the_plan_never_corrected(monkeypatch):
    monkeypatch.setattr(microbatches.MicroBatches, "fallbacks", lambda self: (set(), set()))
    torch.manual_seed(3)
    model = build("llama")
    model.model.layers[0].mlp = Experts(16).eval()
    for parameter in model.model.layers[0].mlp.parameters():
        nn.init.normal_(parameter, std=0.5)
    probes = make_probes(model, lengths=(3, 3, 9, 12))
    assert worst_block_error(Gram()(model, probes), Dense()(model, probes)) > 1e-3


@pytest.mark.slow
def test_a_use_that_comes_only_with_longer_prompts_is_counted():
    model = build("llama")
    model.model.layers[1].mlp = Late(model.model.layers[1].mlp, 16).eval()
    probes, alone = make_probes(model, lengths=(3, 4, 9, 8)), Gram(batch_size=1)
    agree(model, estimator=alone, probes=probes)
    for name in ("scale", "raised"):
        expected = Dense().by_parameter(model, probes)[f"model.layers.1.mlp.{name}"]
        found = alone(model, probes, f"re:mlp.{name}")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_matrix_that_longer_prompts_use_in_another_block_too_counts_both():
    class Borrowing(nn.Module):
        def __init__(self, inner, lent):
            super().__init__()
            self.inner, self.lent = inner, [lent]

        def forward(self, x):
            return self.inner(x) + (self.lent[0](x) if x.shape[1] > 5 else 0)

    model = build("llama")
    first, second = model.model.layers[:2]
    first.mlp = Borrowing(first.mlp, second.self_attn.q_proj)
    agree(model, estimator=Gram(batch_size=1), probes=make_probes(model, lengths=(3, 4, 9, 8)))


def test_a_state_space_model_is_exact():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=48, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = MambaForCausalLM(config).eval()
    agree(model, probes=make_probes(model, lengths=(5, 3, 9)))


def test_a_model_whose_blocks_share_more_than_the_stream_is_taken_whole():
    class Reaching(nn.Module):
        def __init__(self, block, model):
            super().__init__()
            self.block, self.reached = block, [model]

        def forward(self, hidden, *args, **kwargs):
            return self.block(hidden + kwargs.pop("extra"), *args, **kwargs)

    model = build("llama")
    inner = model.model.layers[1]
    model.model.layers[1] = Reaching(inner, model).eval()

    def adding(module, args, kwargs):
        return args, kwargs | {"extra": model.model.embed_tokens.weight[:1].sum(0)}

    model.model.layers[1].register_forward_pre_hook(adding, with_kwargs=True)
    agree(model)


def test_a_steered_model_is_measured_as_it_is_steered():
    model = build("llama")
    direction = torch.randn(16, generator=torch.Generator().manual_seed(3))
    probes = make_probes(model)
    plain = Gram()(model, probes)

    def away(module, inputs, output):
        return output - (output @ direction)[..., None] * direction / direction.square().sum()

    with hooked([(block, away) for block in decoder_layers(model)]):
        agree(model, probes=probes)
        assert worst_block_error(Gram()(model, probes), plain) > 0.1


def test_between_two_models_is_the_product_of_their_jacobians():
    before, after = build("qwen2-tied"), build("qwen2-tied", seed=1)
    observed, updated = make_probes(after), make_probes(before, lengths=(4, 7))
    left, right = (
        torch.cat(list(jacobians(m, p).values()), -1)
        for m, p in ((after, observed), (before, updated))
    )
    found = Gram(batch_size=3).between(after, observed, before, updated)
    assert worst_block_error(found, torch.einsum("aip,bjp->aibj", left, right)) < 1e-4


@pytest.mark.parametrize("left_alone", ["experts.gate_up", "q_proj"])
def test_between_two_models_a_parameter_is_handled_alike_in_both(left_alone, monkeypatch):
    before, after = build("mixtral"), build("mixtral", seed=1)
    observed, updated = make_probes(after), make_probes(before, lengths=(4, 7))
    expected = Gram().between(after, observed, before, updated)
    plan = algorithm.plan_backward

    def partly(schedule, probes, watched):
        names = {n for n in watched if left_alone in n and schedule.model is before}
        assert names or schedule.model is after
        return plan(schedule, probes, watched).with_fallbacks(names)

    monkeypatch.setattr(algorithm, "plan_backward", partly)
    assert worst_block_error(Gram().between(after, observed, before, updated), expected) < 1e-4


def test_between_models_of_two_precisions_is_computed_in_the_higher():
    low, high = build("llama"), build("llama", torch.float64)
    probes = make_probes(high)
    found, expected = Gram().between(low, probes, high, probes), Gram()(high, probes)
    assert found.dtype == torch.float64 and worst_block_error(found, expected) < 1e-4


def test_between_a_model_and_itself_is_its_kernel():
    model = build("gpt2")
    probes = make_probes(model)
    found = Gram().between(model, probes, model, probes, "last:1")
    torch.testing.assert_close(found, Gram()(model, probes, "last:1"), rtol=1e-4, atol=1e-5)


def test_between_models_of_other_parameters_is_refused():
    first, second = build("qwen2-tied"), build("qwen2-untied")
    with pytest.raises(UserError, match="not the same parameters"):
        Gram().between(first, make_probes(first), second, make_probes(second))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_number_of_prompts_at_a_time_changes_nothing(size):
    model = build("qwen2-tied")
    probes = make_probes(model, lengths=(5, 3, 9, 1, 3))
    assert worst_block_error(Gram(batch_size=size)(model, probes), Gram()(model, probes)) < 1e-5


def test_the_order_of_prompts_changes_nothing_but_the_order():
    model, order = build("phi"), [2, 0, 3, 1]
    probes = make_probes(model)
    shuffled = Gram()(model, [probes[row] for row in order])
    assert worst_block_error(shuffled, Gram()(model, probes)[order][:, :, order]) < 1e-5


def test_factors_that_do_not_fit_into_memory_are_computed_again(monkeypatch):
    monkeypatch.setattr(microbatches, "fits_in_memory", lambda factors, batches: False)
    agree(build("qwen2-tied"), estimator=Gram(batch_size=1))


def test_small_intermediate_results_change_nothing(monkeypatch):
    monkeypatch.setattr(backward, "VALUES_AT_A_TIME", {"cpu": 1})
    monkeypatch.setattr(contractions, "FLOATS_AT_A_TIME", {"cpu": 1})
    agree(build("qwen2-tied"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_out_of_memory_halves_the_prompts_at_a_time(error, monkeypatch):
    sizes = []

    class Full(microbatches.MicroBatches):
        def __init__(self, plan, probes, watched, size):
            sizes.append(size)
            if size > 1:
                raise error
            super().__init__(plan, probes, watched, size)

    monkeypatch.setattr(algorithm, "MicroBatches", Full)
    agree(build("llama"))
    assert sizes == [4, 2, 1]
    with pytest.raises(type(error)):
        agree(build("llama"), estimator=Gram(batch_size=2))
    monkeypatch.setattr(algorithm, "microbatch_size", lambda schedule, probes: 1)
    monkeypatch.setattr(Full, "__init__", lambda self, *_: (_ for _ in ()).throw(error))
    with pytest.raises(torch.OutOfMemoryError):  # one kind, for those who ask for less then
        agree(build("llama"))


def test_another_error_is_not_taken_for_too_little_memory(monkeypatch):
    def fail(plan, probes, watched, size):
        raise RuntimeError("something else")

    monkeypatch.setattr(algorithm, "MicroBatches", fail)
    with pytest.raises(RuntimeError, match="something else"):
        Gram()(build("llama"), make_probes(build("llama")))


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"batch_size": -2}, {"dtype": torch.int8}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Gram(**settings)


def test_a_bfloat16_checkpoint_is_measured_in_float32_and_left_as_it_was():
    low = build("gemma2", torch.bfloat16)
    stored = copy.deepcopy(low.state_dict())
    probes = make_probes(low)
    found = Gram()(low, probes)
    assert all(torch.equal(stored[name], x) for name, x in low.state_dict().items())
    assert worst_block_error(found, Dense()(low.float(), probes)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_is_computed_in_only_where_asked_and_is_rough(seed):
    config = build("qwen2-tied", hidden_size=64).config
    torch.manual_seed(seed)
    drawn = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model = drawn.bfloat16()
    probes = make_probes(model, seed=seed)
    rough = Gram(dtype=torch.bfloat16)(model, probes)
    assert 1e-3 < worst_block_error(rough, Gram()(model, probes)) < 0.05
    assert worst_block_error(Gram(dtype=torch.float32)(model, probes), Gram()(model, probes)) == 0


@pytest.mark.parametrize("ending", [nullcontext(), pytest.raises(UserError, match="NaN")])
def test_the_model_is_left_as_it_was(ending):
    model = build("mixtral", torch.bfloat16)
    modules = [*map(id, model.modules())]
    required = [
        p.requires_grad_(i % 2 == 0).requires_grad for i, p in enumerate(model.parameters())
    ]
    probes = make_probes(model)
    if not isinstance(ending, nullcontext):
        model.lm_head.weight.data[3] = torch.nan
    with ending:
        Gram()(model, probes)
    assert [*map(id, model.modules())] == modules
    assert [p.requires_grad for p in model.parameters()] == required
    assert all(p.grad is None and p.dtype == torch.bfloat16 for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_cotangents_of_all_logits_are_exact():
    model = build("gemma2")
    generator = torch.Generator().manual_seed(0)
    probes = [
        Probe(ids, cotangents=torch.randn(2, 48, generator=generator)) for ids in ragged_prompts()
    ]
    agree(model, probes=probes)


def test_a_large_tied_vocabulary_keeps_its_rule_and_its_digits():
    model = build("qwen2-tied", vocab_size=150_000)
    some = torch.Generator().manual_seed(0)
    probes = [
        Probe(torch.arange(5, 9), cotangents=torch.randn(1, 150_000, generator=some))
        for _ in range(2)
    ]
    assert "autograd" not in Gram().coverage(model, probes).values()
    found = Gram()(model, probes)
    # In float32 the oracle's own sums over the vocabulary have an error of 1e-5 on some processors.
    precise = [Probe(p.input_ids, cotangents=p.cotangents.double()) for p in probes]
    assert worst_block_error(found, Dense()(model.double(), precise)) <= 1e-5


def test_one_prompt_of_one_token_is_exact():
    agree(build("qwen2-tied"), probes=[Probe(torch.tensor([3]), torch.tensor([3]))])


def test_the_kernel_is_symmetric_to_the_rounding_of_float32():
    model = build("llama")
    found = Gram(batch_size=2)(model, make_probes(model))
    torch.testing.assert_close(found, found.permute(2, 3, 0, 1), rtol=1e-6, atol=1e-6)


def test_training_mode_is_refused():
    model = build("llama")
    probes = make_probes(model)
    with pytest.raises(UserError, match=r"call model\.eval"):
        Gram()(model.train(), probes)
