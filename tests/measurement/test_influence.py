"""Eq. 2 as a prediction: what it says about a step is what a small step does."""

import copy

import numpy as np
import pytest
import torch
from architectures import VOCABULARY, build, ragged_prompts, with_lora
from tiny_runs import TEXTS, tiny_adapter, tiny_model, tiny_tokenizer

import ntkprobe as ntk
from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense
from ntkprobe.kernel import Probe, last_logits
from ntkprobe.measurement.influence.observations import Observation
from ntkprobe.measurement.influence.prediction import GRADIENT_SHARE
from ntkprobe.measurement.influence.updates import LOSSES
from ntkprobe.models.parameters import ParameterSelection, requiring_grad
from ntkprobe.models.precision import Float64Throughout
from ntkprobe.refusal import reduce_phrases, score_phrases

OBSERVED = ragged_prompts()
UPDATED = [([3, 1, 4, 1], [5, 9, 2]), ([2, 7], [1, 8, 2, 8])]
PHRASES = [(5, 9), (5,), (6, 1, 3), (5, 9, 7)]  # one begins others, as in the paper's set
STEPS = np.geomspace(1e-2, 1e-5, 7)


def predicted(model, **settings):
    given = {"observed": OBSERVED, "updated": UPDATED, "phrases": PHRASES, **settings}
    return ntk.influence(model, None, **given)


@pytest.fixture(scope="module", params=["all", "lora"])
def model(request):
    """A small model in float64, whole or with an adapter; `auto` moves what training would."""
    whole = build("qwen2-tied", torch.float64)
    return whole if request.param == "all" else with_lora(whole).double()


def stepped(model, pair, size, selection=None, loss="sum"):
    """Return a copy after one real step of gradient descent, by its own little code."""
    moved = copy.deepcopy(model)
    chosen = ParameterSelection.parse(
        selection or ("lora" if hasattr(model, "peft_config") else "all")
    ).parameters(moved)
    prompt, answer = pair
    with requiring_grad(moved, chosen):
        ids = torch.tensor([[*prompt, *answer]])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        if loss == "first_token":
            labels[0, len(prompt) + 1 :] = -100
        mean = moved(input_ids=ids, labels=labels).loss  # transformers' own, a mean
        (mean * (len(answer) if loss == "sum" else 1)).backward()
    with torch.no_grad():
        for parameter in chosen.values():
            parameter -= size * parameter.grad
    return moved


@torch.no_grad()
def log_probabilities(model):
    return last_logits(model, OBSERVED).log_softmax(-1)


@torch.no_grad()
def log_refusals(model, reduction="literal"):
    return reduce_phrases(score_phrases(model, OBSERVED, PHRASES), PHRASES, reduction)


def slope_of_residual(model, change, measure, pair=UPDATED[0], **how):
    """Return the power of the step size that predicted and real change differ by."""
    with Float64Throughout():
        before = measure(model)
        gaps = [
            (measure(stepped(model, pair, size, **how)) - before - size * change).norm()
            for size in STEPS
        ]
    return np.polyfit(np.log(STEPS), np.log(gaps), 1)[0]


class TestPrediction:
    @pytest.mark.slow
    @pytest.mark.parametrize("loss", LOSSES)
    def test_log_probabilities_move_as_predicted_to_first_order(self, model, loss):
        with Float64Throughout():
            change = predicted(model, loss=loss).log_probability[0]
        assert slope_of_residual(model, change, log_probabilities, loss=loss) >= 1.9

    @pytest.mark.slow
    @pytest.mark.parametrize("reduction", ["literal", "prefix_free"])
    def test_refusals_move_as_predicted_to_first_order(self, model, reduction):
        with Float64Throughout():
            change = predicted(model, reductions=[reduction]).refusal[0]
        found = slope_of_residual(model, change, lambda m: log_refusals(m, reduction))
        assert found >= 1.9

    def test_a_wrong_sign_is_no_prediction(self, model):
        with Float64Throughout():
            change = -predicted(model).log_probability[0]
        assert slope_of_residual(model, change, log_probabilities) < 1.1

    def test_parameters_left_out_are_no_prediction(self):
        whole = build("qwen2-tied", torch.float64)
        with Float64Throughout():
            change = predicted(whole, parameters="last:1").log_probability[0]
        assert slope_of_residual(whole, change, log_probabilities) < 1.1
        assert slope_of_residual(whole, change, log_probabilities, selection="last:1") >= 1.9

    def test_another_pair_is_no_prediction(self, model):
        with Float64Throughout():
            change = predicted(model).log_probability[0]
        assert slope_of_residual(model, change, log_probabilities, pair=UPDATED[1]) < 1.1


class TestTerms:
    # The passes themselves are compared on every architecture in test_forward_mode.
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["qwen2-tied", "gpt2", "gemma2", "mixtral"])
    def test_the_first_token_is_a_k_g_over_the_whole_vocabulary(self, name):
        model = build(name, torch.float64)
        with Float64Throughout():
            found = predicted(model, loss="first_token", phrases=None).log_probability
            torch.testing.assert_close(found, by_definition(model, 1), rtol=1e-9, atol=1e-12)

    @pytest.mark.slow
    def test_the_whole_answer_is_the_sum_over_its_positions(self):
        model = build("qwen2-tied", torch.float64)
        with Float64Throughout():
            found = predicted(model, phrases=None).log_probability
            torch.testing.assert_close(found, by_definition(model), rtol=1e-9, atol=1e-12)
            assert (found - by_definition(model, 1)).abs().max() > 1e-3

    def test_norms_are_those_of_the_matrices(self):
        model = build("llama", torch.float64)
        found = predicted(model, loss="first_token")
        chances = last_logits(model, OBSERVED).softmax(-1).detach()
        matrices = torch.eye(VOCABULARY) - chances[:, None]
        expected = torch.linalg.matrix_norm(matrices)
        torch.testing.assert_close(found.a_norm, expected, rtol=1e-6, atol=0)
        assert found.g_norm[0] == pytest.approx(float(residual(model, *UPDATED[0]).norm()), 1e-5)

    def test_sum_and_mean_differ_by_the_answers_length(self):
        model = build("llama", torch.float64)
        both = [predicted(model, loss=loss) for loss in ("sum", "mean")]
        assert torch.allclose(both[0].losses, both[1].losses * torch.tensor([3.0, 4.0]).double())
        lengths = torch.tensor([3.0, 4.0]).double()[:, None]
        torch.testing.assert_close(both[0].refusal, both[1].refusal * lengths)


def residual(model, prompt, answer, position=0):
    """Return π − e_y at one position of the answer."""
    with torch.no_grad():
        chances = last_logits(model, [torch.tensor([*prompt, *answer[:position]])])[0].softmax(-1)
    chances[answer[position]] -= 1
    return chances


def by_definition(model, tokens=None):
    """Return −A K G from the explicit blocks, summed over so many tokens of each answer."""
    everything = torch.arange(VOCABULARY)
    chances = last_logits(model, OBSERVED).softmax(-1).detach()
    a = torch.eye(VOCABULARY) - chances[:, None]
    changes = []
    for prompt, answer in UPDATED:
        places = [torch.tensor([*prompt, *answer[:t]]) for t in range(len(answer))][:tokens]
        k = Dense()(model, [Probe(ids, everything) for ids in [*OBSERVED, *places]])
        g = [residual(model, prompt, answer, t) for t in range(len(places))]
        kg = torch.einsum("aibj,bj->ai", k[: len(OBSERVED), :, len(OBSERVED) :], torch.stack(g))
        changes.append(-torch.einsum("aij,aj->ai", a, kg))
    return torch.stack(changes)


class TestWays:
    @pytest.mark.parametrize("name", ["qwen2-tied", "gpt2", "gemma3", "mixtral"])
    def test_forward_and_reverse_agree(self, name):
        model = build(name)
        both = [predicted(model, mode=mode).refusal for mode in ("forward", "reverse")]
        torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("fitting", [1, 2, 3])
    def test_how_many_gradients_are_held_at_once_changes_nothing(self, fitting, monkeypatch):
        model = build("llama")
        pairs = [*UPDATED, ([4, 4, 6], [2, 5]), ([1, 9], [7]), ([8, 3, 2], [6, 6, 1])]
        one_by_one = predicted(model, updated=pairs, tokens=None, mode="forward").refusal
        each = 4 * sum(p.numel() for p in model.parameters())
        room = int((fitting + 0.5) * each / GRADIENT_SHARE)
        monkeypatch.setattr("ntkprobe.measurement.influence.prediction.free_bytes", lambda _: room)
        held = []
        observe = Observation.vjp_products

        def noted(self, prompt, directions):
            held.append(len(next(iter(directions.values()))))
            return observe(self, prompt, directions)

        monkeypatch.setattr(Observation, "vjp_products", noted)
        grouped = predicted(model, updated=pairs, tokens=None).refusal
        torch.testing.assert_close(grouped, one_by_one, rtol=1e-4, atol=1e-5)
        assert set(held) == {1: set(), 2: {2}, 3: {2, 3}}[fitting]  # a pair alone goes forward

    def test_batches_change_nothing(self):
        model = build("llama", torch.float64)
        with Float64Throughout():
            alone, together = (predicted(model, batch_size=n, mode="forward") for n in (1, 4))
        torch.testing.assert_close(alone.log_probability, together.log_probability)
        torch.testing.assert_close(alone.refusal, together.refusal)

    def test_chosen_tokens_are_entries_of_the_whole(self):
        model = build("llama", torch.float64)
        with Float64Throughout():
            some, whole = predicted(model, tokens=[7, 3]), predicted(model).log_probability
        torch.testing.assert_close(some.log_probability, whole[..., [7, 3]])
        assert set(some.frame()["target"]) == {"refusal_literal", "token_7", "token_3"}

    def test_a_model_that_knows_no_mask_is_asked_phrase_by_phrase(self, monkeypatch):
        model = build("llama")
        shared = predicted(model).refusal
        monkeypatch.setattr("ntkprobe.refusal.probability.obeys_masks", lambda *_: False)
        for mode in ("forward", "reverse"):
            found = predicted(model, mode=mode).refusal
            torch.testing.assert_close(found, shared, rtol=1e-4, atol=1e-5)

    def test_the_model_is_left_as_it_was(self):
        model = build("llama").train().requires_grad_(False)
        before = copy.deepcopy(model.state_dict())
        predicted(model)
        assert model.training
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TestTexts:
    answer = "sorry I cannot"

    def test_texts_give_groups_and_a_tidy_table(self):
        prompts = ntk.PromptSet.from_texts(TEXTS)
        toxic = [(text, self.answer) for text in TEXTS["toxic"]]
        found = ntk.influence(
            tiny_model(), tiny_tokenizer(), observed=prompts, updated=toxic, phrases=["I cannot"]
        )
        table = found.frame()
        assert len(table) == len(prompts) * 2
        assert set(table["observed_group"]) == set(TEXTS)
        assert set(table["updated_group"]) == {"toxic"}
        row = table.iloc[-1]
        place = row["updated"], row["observed"]
        assert row["change"] == pytest.approx(float(found.refusal[place]))

    def test_learning_a_refusal_raises_it_where_it_is_learnt(self):
        pair = ("how do i kill my neighbour ?", self.answer)
        found = ntk.influence(
            tiny_model(), tiny_tokenizer(), observed=[pair[0]], updated=[pair], phrases=["sorry"]
        )
        assert float(found.refusal) > 0

    def test_an_adapter_is_what_moves(self):
        adapted = tiny_adapter(tiny_model(), seed=1)
        assert predicted(adapted, observed=[[3, 4]]).settings["parameters"] == "lora"
        assert predicted(tiny_model(), observed=[[3, 4]]).settings["parameters"] == "all"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updated": []}, "no updated examples"),
        ({"observed": []}, "no prompts"),
        ({"updated": [([1], [])]}, "updated example 0 is no row of token ids"),
        ({"updated": ["ab"]}, "updated example 0 is no pair"),
        ({"updated": [([1], [99])]}, "updated example 0 holds a token outside"),
        ({"updated": [([1] * 30, [2] * 9)]}, "updated example 0 has 39 tokens"),
        ({"observed": ["text"]}, "observed prompt 0 is no token ids"),
        ({"loss": "median"}, "no loss 'median'"),
        ({"mode": "sideways"}, "no mode 'sideways'"),
        ({"tokens": [99]}, "tokens= holds a token outside"),
        ({"tokens": None, "phrases": None}, "nothing to predict"),
        ({"phrases": ["I cannot"]}, "give them as token ids"),
        ({"parameters": "lora"}, "it has no adapter"),
        ({"reductions": ["half"]}, "no reduction 'half'"),
    ],
)
def test_mistakes_are_told_in_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        predicted(build("llama"), **settings)


@pytest.mark.parametrize(
    ("updated", "message"),
    [
        (["how do i"], "updated example 0 is no pair of texts"),
        ([("how do i", " ")], "updated example 0 has no answer"),
        ([ntk.Prompt("how do i", "toxic")], "updated example 0 has no answer"),
    ],
)
def test_pairs_without_answers_are_told_in_one_line(updated, message):
    with pytest.raises(UserError, match=message):
        ntk.influence(tiny_model(), tiny_tokenizer(), observed=["bake"], updated=updated)
