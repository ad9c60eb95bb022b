"""A prompt may hold the padding token, as chat templates write it: no number forgets its row."""

import copy

import pytest
import torch
from architectures import build, worst_block_error
from torch import nn

import ntkprobe as ntk
from ntkprobe import estimators, plugins
from ntkprobe.attribution.observed import Observed
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.forward_mode import ForwardMode
from ntkprobe.kernel import Probe
from ntkprobe.measurement.full_vocabulary import full_vocabulary_norms
from ntkprobe.measurement.influence import predict_step, record_step
from ntkprobe.models.padding_row import constant_padding_row, varying_padding_row
from ntkprobe.models.precision import Float64Throughout
from ntkprobe.prompts.prompt_set import Prompt, PromptSet

PADDING = 3
OBSERVED = [torch.tensor([1, PADDING, 5, PADDING, 7]), torch.tensor([PADDING, 2, 4])]
PAIR = ([3, 1, PADDING, 1], [5, 9, PADDING])  # its answer ends with the padding token, as in chats
PHRASES = [(5, 9), (6, 1, PADDING)]
PROBES = [Probe(ids, torch.tensor([PADDING, 5, 6])) for ids in OBSERVED]


def model(tied=True):
    return build("llama", torch.float64, pad_token_id=PADDING, tie_word_embeddings=tied)


@torch.no_grad()
def log_refusals(of):
    scores = ntk.refusal.score_phrases(of, OBSERVED, PHRASES)
    return ntk.refusal.reduce_phrases(scores, PHRASES)


def influence(of, **settings):
    given = {"observed": OBSERVED, "updated": [PAIR], "phrases": PHRASES, "tokens": None}
    with Float64Throughout():
        return ntk.influence(of, None, **(given | settings)).refusal[0]


def trained(of, size):
    """Return a copy after one step of training, with PyTorch's own gradient."""
    moved = copy.deepcopy(of)
    ids, labels = torch.tensor([PAIR[0] + PAIR[1]]), torch.tensor([[-100] * 4 + PAIR[1]])
    (moved(input_ids=ids, labels=labels).loss * len(PAIR[1])).backward()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter -= size * parameter.grad
    return moved


class TestInfluence:
    @pytest.mark.parametrize("mode", ["forward", "reverse"])
    @pytest.mark.parametrize("tied", [True, False])
    def test_it_is_what_a_small_step_of_training_does(self, tied, mode):
        of, size = model(tied), 1e-6
        with Float64Throughout():
            real = (log_refusals(trained(of, size)) - log_refusals(trained(of, -size))) / (2 * size)
        torch.testing.assert_close(influence(of, mode=mode), real, rtol=1e-6, atol=1e-8)

    def test_leaving_the_row_out_where_it_is_looked_up_is_no_prediction(self):
        with constant_padding_row(of := model()):
            found = influence(of, mode="forward")
        gap = (found - influence(of, mode="forward")).abs().max()
        assert gap > 1e-3 * found.abs().max()

    @pytest.mark.parametrize("mode", ["forward", "reverse"])
    def test_a_step_that_decays_the_row_is_predicted(self, mode):
        of, moved = model(tied=False), model(tied=False)
        decay = torch.optim.SGD(moved.parameters(), lr=1e-6, weight_decay=1.0)
        for parameter in moved.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with Float64Throughout():
            before = log_refusals(of)
            with record_step(moved) as step:
                decay.step()
            how = {"observed": OBSERVED, "phrases": PHRASES, "tokens": None, "mode": mode}
            found = predict_step(of, None, step=step, **how).refusal
            torch.testing.assert_close(found, log_refusals(moved) - before, rtol=1e-4, atol=1e-12)

    def test_gradients_of_attributions_observed_prompts_have_the_row(self):
        of, texts = model(), PromptSet(tuple(Prompt(str(n), "toxic") for n in range(2)))
        observed = Observed(texts, tuple(OBSERVED), (), tuple(PHRASES), (), "refusal")
        name = "model.embed_tokens.weight"
        with Float64Throughout():
            _, held = observed.held(of, {name: of.get_parameter(name)})
        along = torch.zeros_like(of.get_parameter(name))
        along[PADDING] = 1e-6
        sides = []
        for sign in (1, -1):
            other = copy.deepcopy(of)
            other.get_parameter(name).data.add_(sign * along)
            with Float64Throughout():
                sides.append(log_refusals(other))
        real = (sides[0] - sides[1]) / 2e-6
        torch.testing.assert_close(held[name][:, PADDING].sum(-1), real, rtol=1e-6, atol=1e-8)


class TestKernel:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("name", plugins.names(estimators))
    def test_every_estimator_leaves_the_row_out_as_training_does(self, name, tied):
        method, of = plugins.load(estimators, name)(), model(tied)
        error = worst_block_error(method(of, PROBES), Dense()(of, PROBES))
        assert error < getattr(method, "rtol", 1e-6)

    def test_forward_mode_would_differ_with_a_row_that_varies(self, monkeypatch):
        monkeypatch.setattr(
            "ntkprobe.estimators.forward_mode.constant_padding_row", varying_padding_row
        )
        of = model()
        assert worst_block_error(ForwardMode()(of, PROBES), Dense()(of, PROBES)) > 1e-3

    def test_the_whole_vocabulary_leaves_it_out_too(self):
        of = model()
        everything = [Probe(ids, torch.arange(48)) for ids in OBSERVED]
        expected = torch.linalg.matrix_norm(Dense()(of, everything).transpose(1, 2))
        torch.testing.assert_close(full_vocabulary_norms(of, OBSERVED), expected)


class TestContexts:
    def test_the_model_is_as_before_behind_them(self):
        of = model()
        embedding: nn.Embedding = of.get_input_embeddings()
        for context in (constant_padding_row, varying_padding_row):
            with pytest.raises(KeyboardInterrupt), context(of):
                raise KeyboardInterrupt
            assert embedding.padding_idx == PADDING and not embedding._forward_hooks

    def test_outputs_are_unchanged_inside_them(self):
        of = model()
        expected = of(OBSERVED[0][None]).logits
        for context in (constant_padding_row, varying_padding_row):
            with context(of):
                torch.testing.assert_close(of(OBSERVED[0][None]).logits, expected, rtol=0, atol=0)
