import pytest
import torch
from architectures import (
    ARCHITECTURES,
    VOCABULARY,
    build,
    make_probes,
    perturbed,
    ragged_prompts,
    with_lora,
)
from transformers import AutoModelForCausalLM, MambaConfig

from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.gram import Gram
from ntkprobe.kernel import Probe, norms
from ntkprobe.measurement import full_vocabulary as vocabulary
from ntkprobe.measurement.full_vocabulary import (
    full_vocabulary_by_selection,
    full_vocabulary_gradients,
    full_vocabulary_norms,
)
from ntkprobe.measurement.proposition1.factors import feature_products
from ntkprobe.models.parameters import ParameterSelection
from ntkprobe.models.precision import Float64Throughout


def explicit(model, prompts, parameters="all"):
    """Return the norms by a Jacobian with a row for every logit."""
    everything = torch.arange(VOCABULARY)
    return norms(Dense()(model, [Probe(ids, everything) for ids in prompts], parameters))


def worst(found, expected):
    return float((found / expected - 1).abs().max())


class TestAgreement:
    rtol = 1e-9  # a sweep over architectures and selections gave 3e-15 at most

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_norms_are_those_of_an_explicit_jacobian(self, name):
        model, prompts = build(name, torch.float64), ragged_prompts()
        with Float64Throughout():
            found = full_vocabulary_norms(model, prompts)
            assert worst(found, explicit(model, prompts)) <= self.rtol

    @pytest.mark.slow
    @pytest.mark.parametrize("selection", ["head", "last:1", "last:1+head", "norm"])
    @pytest.mark.parametrize("name", ["qwen2-tied", "qwen2-untied", "gemma2"])
    def test_selections_with_and_without_the_head_are_honoured(self, name, selection):
        model, prompts = build(name, torch.float64), ragged_prompts()
        with Float64Throughout():
            found = full_vocabulary_norms(model, prompts, selection, estimator=Dense())
            assert worst(found, explicit(model, prompts, selection)) <= self.rtol

    @pytest.mark.slow
    @pytest.mark.parametrize("selection", ["all", "lora"])
    def test_adapters_are_measured_merged_or_alone(self, selection):
        model, prompts = with_lora(build("llama", torch.float64)).double(), ragged_prompts()
        with Float64Throughout():
            found = full_vocabulary_norms(model, prompts, selection, estimator=Dense())
            assert worst(found, explicit(model, prompts, selection)) <= self.rtol

    @pytest.mark.slow
    def test_tiles_of_prompts_change_nothing(self, monkeypatch):
        model, prompts = build("qwen2-tied", torch.float64), ragged_prompts()
        with Float64Throughout():
            whole = full_vocabulary_norms(model, prompts, estimator=Dense())
            monkeypatch.setattr(vocabulary, "ROWS_AT_A_TIME", 32)
            tiled = full_vocabulary_norms(model, prompts, estimator=Dense())
        assert worst(tiled, whole) <= self.rtol

    @pytest.fixture(scope="class")
    def alone(self):
        """A model, and the norms and gradients' lengths of selections that are measured alone."""
        model, prompts = build("qwen2-tied", torch.float64), ragged_prompts()
        selections = ["last:1", "head", "all"]  # overlapping, one with nothing below the head
        with Float64Throughout():
            expected = {
                each: (
                    explicit(model, prompts, each),
                    full_vocabulary_gradients(model, prompts, each, estimator=Dense()),
                )
                for each in selections
            }
        return model, prompts, expected

    @pytest.mark.parametrize("estimator", [Dense(), Gram()])
    @pytest.mark.parametrize("rows", [2**14, 32])
    def test_selections_of_one_pass_are_those_measured_alone(
        self, alone, estimator, rows, monkeypatch
    ):
        model, prompts, expected = alone
        monkeypatch.setattr(vocabulary, "ROWS_AT_A_TIME", rows)
        with Float64Throughout():
            together = full_vocabulary_by_selection(
                model, prompts, list(expected), estimator=estimator
            )
        for found, (norms_alone, lengths_alone) in zip(together, expected.values(), strict=True):
            assert worst(found.norms, norms_alone) <= self.rtol
            assert worst(found.gradients, lengths_alone) <= self.rtol

    def test_any_estimator_will_do(self):
        model, prompts = build("qwen2-tied"), ragged_prompts()
        dense, gram = (
            full_vocabulary_norms(model, prompts, estimator=e) for e in (Dense(), Gram())
        )
        assert worst(gram, dense) <= 1e-5

    def test_a_model_that_asks_its_head_for_the_precision_is_measured(self):
        sizes = dict(vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, state_size=2)
        model = perturbed(AutoModelForCausalLM.from_config(MambaConfig(**sizes))).double().eval()
        prompts = ragged_prompts((2, 3))
        with Float64Throughout():
            found = full_vocabulary_norms(model, prompts)
            assert worst(found, explicit(model, prompts)) <= self.rtol
            chosen = ParameterSelection.parse("embed").parameters(model)
            own = feature_products(model, prompts, 1, chosen).inner.diagonal()
            assert bool((own > 0).all())

    def test_padding_that_a_prompt_holds_takes_no_gradient(self):
        model, prompts = (
            build("opt", torch.float64),
            [torch.tensor([1, 4, 1]), torch.tensor([4, 1])],
        )
        with Float64Throughout():
            found = full_vocabulary_norms(model, prompts)
            assert worst(found, explicit(model, prompts)) <= TestAgreement.rtol


class TestControls:
    def test_forgetting_that_the_weights_are_tied_is_wrong(self):
        tied, prompts = build("qwen2-tied", torch.float64), ragged_prompts()
        untied = build("qwen2-tied", torch.float64)
        untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
        found = full_vocabulary_norms(untied, prompts, estimator=Dense())
        assert worst(found, explicit(tied, prompts)) > 0.01

    def test_forgetting_the_soft_cap_is_wrong(self):
        capped, prompts = build("gemma2", torch.float64), ragged_prompts()
        plain = build("gemma2", torch.float64, final_logit_softcapping=None)
        found = full_vocabulary_norms(plain, prompts, estimator=Dense())
        assert worst(found, explicit(capped, prompts)) > 0.01

    def test_the_top_tokens_are_a_small_part_of_the_vocabulary(self):
        model = build("llama", torch.float64)
        block = norms(Dense()(model, make_probes(model, k=5)))
        whole = full_vocabulary_norms(model, ragged_prompts(), estimator=Dense())
        assert bool((block < 0.8 * whole).all())


class TestModel:
    def test_the_model_is_left_as_it_was(self):
        model = build("gemma2").requires_grad_(False)
        head, table, cap = (
            model.lm_head,
            model.model.embed_tokens.weight,
            model.config.final_logit_softcapping,
        )
        full_vocabulary_norms(model, ragged_prompts(), estimator=Dense())
        assert model.lm_head is head and model.model.embed_tokens.weight is table
        assert model.config.final_logit_softcapping == cap and not table.requires_grad

    def test_no_selection_at_all_is_refused(self):
        with pytest.raises(UserError, match="no selections: give at least one"):
            full_vocabulary_by_selection(build("llama"), ragged_prompts(), [])

    def test_a_head_that_is_no_plain_matrix_is_refused(self):
        model = build("llama")
        model.lm_head = torch.nn.Sequential(model.lm_head)
        with pytest.raises(UserError, match="no plain matrix"):
            full_vocabulary_norms(model, ragged_prompts())

    def test_logits_that_mix_after_the_head_are_refused(self):
        model = build("llama")
        model.register_forward_hook(
            lambda module, inputs, output: type(output)(logits=output.logits.softmax(-1))
        )
        with pytest.raises(UserError, match="depends on several of the head"):
            full_vocabulary_norms(model, ragged_prompts())

    def test_a_third_use_of_the_heads_matrix_is_refused(self):
        model = build("qwen2-tied")
        model.also = torch.nn.Linear(16, VOCABULARY, bias=False)
        model.also.weight = model.lm_head.weight
        with pytest.raises(UserError, match="used by 3 modules"):
            full_vocabulary_norms(model, ragged_prompts())
