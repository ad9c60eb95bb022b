"""Laws of prompts that share a pass: each has the numbers that it has alone."""

import logging
from copy import deepcopy
from functools import cache

import pytest
import torch
from architectures import VOCABULARY, build, worst_block_error
from every_family import tiny
from toy_tokenizers import byte_bpe
from transformers import LogitsProcessor

from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.forward_mode import ForwardMode
from ntkprobe.estimators.gram import Gram, microbatches
from ntkprobe.kernel import Probe, last_logits, top_tokens
from ntkprobe.measurement.activations import read_layers
from ntkprobe.measurement.influence.observations import LogProbabilities, Refusals
from ntkprobe.mitigations import applied
from ntkprobe.mitigations.activations import last_states
from ntkprobe.mitigations.branches import Branch
from ntkprobe.mitigations.prompt import Prompt
from ntkprobe.models import batching, generation, logits
from ntkprobe.models.architecture import layer_output
from ntkprobe.models.batching import LengthRule, context_length, padding_known, together
from ntkprobe.models.generation import generate_answers
from ntkprobe.refusal import probability, score_phrases

LIMIT = 24
LENGTHS = (5, LIMIT - 2, 30, LIMIT, LIMIT + 1, 9, 27)  # short, crossing within a phrase, long
PHRASES = [(3, 4, 9, 2), (7,), (3, 5), (6, 6, 6)]
LONGROPE = dict(
    original_max_position_embeddings=LIMIT,
    max_position_embeddings=96,
    rope_parameters=dict(
        rope_type="longrope",
        rope_theta=1e4,
        short_factor=[1.0] * 2,
        long_factor=[4.0] * 2,
        original_max_position_embeddings=LIMIT,
        factor=4.0,
    ),
)
_GROWING = dict(rope_type="dynamic", rope_theta=1e4, factor=4.0)
DYNAMIC = dict(max_position_embeddings=LIMIT, rope_parameters=_GROWING)
BY_LAYER = dict(
    max_position_embeddings=LIMIT,
    sliding_window=8,
    layer_types=["sliding_attention", "full_attention"],
    rope_parameters=dict(
        sliding_attention=dict(rope_type="default", rope_theta=1e4), full_attention=_GROWING
    ),
)
MODELS = {
    "longrope": ("phi3", LONGROPE),
    "dynamic": ("llama", DYNAMIC),
    "dynamic in some layers": ("gemma3", BY_LAYER),
}


def ruled(name, dtype=torch.float32, **changes):
    kind, settings = MODELS[name]
    return build(kind, dtype, **settings | changes)


def prompts(lengths=LENGTHS, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocabulary, (n,), generator=generator) for n in lengths]


@torch.no_grad()
def fresh(model, ids):
    """The logits after a text, from a model that has seen no other text."""
    return deepcopy(model)(input_ids=torch.as_tensor(ids)[None], use_cache=False).logits[0, -1]


def by_definition(model, ids, phrase):
    """log Π p(y_t | x, y_<t), each from the text before the token and nothing else."""
    total, text = 0.0, ids.tolist()
    for token in phrase:
        total += float(fresh(model, text).double().log_softmax(-1)[token])
        text.append(token)
    return total


@cache
def phrases_by_definition(name):
    model, given = ruled(name), prompts()
    each = [[by_definition(model, ids, phrase) for phrase in PHRASES] for ids in given]
    return torch.tensor(each, dtype=torch.float64)


@cache
def measured_and_expected(name):
    model = ruled(name, torch.float64)
    probes = [Probe(ids, torch.tensor([1, 5])) for ids in prompts((3, LIMIT, 30, 30, 9))]
    return model, probes, kernel_alone(model, probes)


def kernel_alone(model, probes):
    """K by autograd, a model that has seen no other text for each prompt."""
    rows = []
    for probe in probes:
        own = deepcopy(model)
        z = own(input_ids=probe.input_ids[None], use_cache=False).logits[0, -1]
        for token in probe.tokens:
            grads = torch.autograd.grad(z[token], list(own.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]).double())
    jacobian = torch.stack(rows)
    n = len(probes)
    return (jacobian @ jacobian.T).reshape(n, -1, n, len(probes[0]))


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_each_prompt_alone(name):
    model, given = ruled(name), prompts()
    expected = torch.stack([fresh(model, ids) for ids in given])
    with torch.no_grad():
        found, backwards = last_logits(model, given), last_logits(model, given[::-1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(backwards.flip(0), expected, atol=1e-4, rtol=0)
    tops = torch.stack(top_tokens(model, given, 3))
    assert torch.equal(tops, expected.topk(3).indices)
    with torch.no_grad():
        one_pass = logits.padded_logits(model, given)
    assert (one_pass - expected).abs().max() > 0.01


@pytest.mark.parametrize("name", ["dynamic", "dynamic in some layers"])
def test_no_pass_depends_on_a_longer_text_before_it_or_leaves_its_trace(name):
    model, ids = ruled(name), prompts([LIMIT])[0]
    expected = fresh(model, ids)
    with torch.no_grad():
        model(input_ids=prompts([60])[0][None])
        assert (model(input_ids=ids[None]).logits[0, -1] - expected).abs().max() > 1e-3
        model(input_ids=prompts([60])[0][None])
        torch.testing.assert_close(last_logits(model, [ids])[0], expected, atol=1e-5, rtol=0)
        clean = ruled(name)
        last_logits(clean, prompts([60]))
        found = clean(input_ids=ids[None]).logits[0, -1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [Gram(), Gram(batch_size=2), ForwardMode(), Dense()], ids=repr
)
@pytest.mark.parametrize("name", MODELS)
def test_kernels_are_those_of_each_prompt_alone(name, estimator):
    model, probes, expected = measured_and_expected(name)
    assert worst_block_error(estimator(model, probes), expected) < 1e-5


def test_finite_differences_are_of_each_prompt_alone():
    model = ruled("longrope", torch.float64)
    probes = [Probe(ids, torch.tensor([1])) for ids in prompts((3, 30))]
    found = FiniteDifference(1e-3, "unit")(model, probes)
    assert worst_block_error(found, kernel_alone(model, probes)) < 0.01


def test_a_gram_tile_of_short_and_long_prompts_would_be_far_off(monkeypatch):
    model = ruled("longrope", torch.float64)
    probes = [Probe(ids, torch.tensor([1, 5])) for ids in prompts((3, 30))]
    monkeypatch.setattr(microbatches, "split", lambda *given: [[0, 1]])
    monkeypatch.setattr(logits, "together", lambda *given: [[0, 1]] if len(given[1]) > 1 else [[0]])
    assert worst_block_error(Gram()(model, probes), kernel_alone(model, probes)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["trie", "rows", "processors"])
@pytest.mark.parametrize("name", MODELS)
def test_phrases_have_the_probability_of_each_token_after_the_text_before_it(
    name, way, monkeypatch
):
    if way == "rows":
        monkeypatch.setattr(probability, "obeys_masks", lambda *given: False)
    model, given = ruled(name), prompts()
    processors = [LogitsProcessorThatKeeps()] if way == "processors" else []
    found = score_phrases(model, given, PHRASES, logits_processor=processors)
    torch.testing.assert_close(found, phrases_by_definition(name), atol=1e-4, rtol=0)


class LogitsProcessorThatKeeps(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


@pytest.mark.parametrize("name", MODELS)
def test_one_pass_over_a_phrase_that_crosses_the_limit_gives_another_number(name):
    model, ids, phrase = ruled(name), prompts([LIMIT])[0], PHRASES[0]
    with torch.no_grad():
        text = torch.cat([ids, torch.tensor(phrase)])
        z = deepcopy(model)(input_ids=text[None]).logits[0, LIMIT - 1 : -1].double()
    whole = float(z.log_softmax(-1)[torch.arange(len(phrase)), list(phrase)].sum())
    assert abs(whole - by_definition(model, ids, phrase)) > 0.01


LETTERS = 300


def letters(name, **changes):
    return ruled(name, vocab_size=LETTERS, **changes)


@torch.no_grad()
def answered_alone(model, ids, steps):
    """Greedy tokens: for longrope, the whole text again for every one."""
    text = ids.tolist()
    for _ in range(steps):
        text.append(int(fresh(model, text).argmax()))
    return byte_bpe().decode(text[len(ids) :], skip_special_tokens=True)


def test_answers_on_either_side_of_the_limit_and_across_it_are_those_of_a_bare_loop():
    model, given = letters("longrope"), prompts(vocabulary=LETTERS)
    found = generate_answers(model, byte_bpe(), given, max_new_tokens=5)
    assert found == [answered_alone(model, ids, 5) for ids in given]


def test_answers_of_a_batch_that_ignores_the_rule_differ(monkeypatch):
    model, given = letters("longrope"), prompts(vocabulary=LETTERS)
    expected = generate_answers(model, byte_bpe(), given, max_new_tokens=5)
    monkeypatch.setattr(generation, "answered_together", lambda m, ids, batch, room: [batch])
    assert generate_answers(model, byte_bpe(), given, max_new_tokens=5) != expected


@torch.no_grad()
def test_answers_of_a_dynamic_rope_are_what_generate_gives_each_prompt_alone():
    model, given = letters("dynamic"), prompts(vocabulary=LETTERS)
    found = generate_answers(model, byte_bpe(), given, max_new_tokens=5)
    for ids, answer in zip(given, found, strict=True):
        out = deepcopy(model).generate(ids[None], do_sample=False, max_new_tokens=5)
        assert byte_bpe().decode(out[0, len(ids) :], skip_special_tokens=True) == answer


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_influence_observes_each_prompt_alone(name):
    model, given = ruled(name), prompts((5, LIMIT - 1, 30))
    chosen = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(2)
    direction = {n: torch.randn(p.shape, generator=generator) for n, p in chosen.items()}
    refusals = Refusals(model, chosen, PHRASES, ("literal",), given[-1])
    for what in (LogProbabilities(model, chosen), refusals):
        together_ = what.directional_derivative(given, direction)
        alone = [what.directional_derivative([ids], direction) for ids in given]
        for found, each in zip(together_, zip(*alone, strict=True), strict=True):
            torch.testing.assert_close(found, torch.cat(each), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_states_and_activations_are_those_of_each_prompt_alone(name):
    model, given = ruled(name), prompts()
    modules = {2: layer_output(model, 2)}
    with torch.no_grad():
        tokens, found = read_layers(model, modules, given, [1], 32)
        alone = [read_layers(deepcopy(model), {}, [ids], [1], 1)[0] for ids in given]
        torch.testing.assert_close(tokens, torch.cat(alone), atol=0, rtol=0)
        each = [last_states(deepcopy(model), [ids], 2) for ids in given]
    states = last_states(model, given, 2)
    torch.testing.assert_close(states, torch.cat(each), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[2][:, 0].double(), states[:, 1, -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_branch_of_a_decoding_method_has_each_rows_numbers_alone(name):
    model, given = ruled(name), prompts()
    chosen = torch.randint(0, VOCABULARY, (len(given), 4))
    branch = Branch(model, [ids.tolist() for ids in given])
    for step in range(4):
        found = branch.logits(chosen[:, max(step - 1, 0) : step])
        texts = [torch.cat([ids, new[:step]]) for ids, new in zip(given, chosen, strict=True)]
        expected = torch.stack([fresh(model, text) for text in texts])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_decoding_methods_answers_do_not_depend_on_the_batch():
    model = ruled("longrope", vocab_size=LETTERS)
    given = prompts((5, LIMIT - 2, 30, 9), LETTERS)
    with applied(Prompt(system="ab", template="raw"), model, byte_bpe()) as processors:

        def answers(some):
            return generate_answers(
                model, byte_bpe(), some, max_new_tokens=4, logits_processor=processors
            )

        assert answers(given) == [answers([ids])[0] for ids in given]


def test_ordinary_models_share_passes_as_before():
    model = build("llama")
    assert not LengthRule.of(model)
    assert together(model, prompts()) == [list(range(len(LENGTHS)))]
    assert LengthRule.of(ruled("longrope")) == LengthRule(limits=(LIMIT,))
    assert LengthRule.of(ruled("dynamic")) == LengthRule(growing=(LIMIT,))
    assert together(ruled("longrope"), prompts()) == [[0, 1, 3, 5], [2, 4, 6]]
    assert together(ruled("longrope"), prompts(), new_tokens=3) == [[0, 5], [1], [2, 4, 6], [3]]


def test_padding_is_tried_once_for_each_model_and_length_and_on_few_prompts(monkeypatch):
    model, passes = build("llama"), []
    original = logits.padded_logits
    monkeypatch.setattr(
        logits, "padded_logits", lambda m, p: passes.append(len(p)) or original(m, p)
    )
    given = prompts((9, 3, 5, 7, 8))
    logits.try_padding(model, given)
    logits.try_padding(model, given)
    assert passes == [1, 1, 2] and padding_known(model, "right") is True


def test_a_model_that_padding_changes_is_run_a_prompt_at_a_time_and_the_log_says_so(caplog):
    model, given = tiny("bart", torch.float32), prompts((5, 9, 3))
    caplog.set_level(logging.WARNING)
    found = generate_answers(model, Digits(), given, max_new_tokens=4)
    assert [r.message for r in caplog.records if "one prompt at a time" in r.message] != []
    assert found == [generate_answers(model, Digits(), [ids], max_new_tokens=4)[0] for ids in given]
    assert padding_known(model, "left") is False and padding_known(model, "right") is True


def test_a_model_that_looks_ahead_is_run_a_prompt_at_a_time(caplog):
    model, given = LooksAhead(), prompts((5, 9, 3))
    caplog.set_level(logging.WARNING)
    tops = top_tokens(model, given, 3)
    assert len([r for r in caplog.records if "one prompt at a time" in r.message]) == 1
    alone = torch.stack([model(ids[None]).logits[0, -1] for ids in given])
    assert torch.equal(torch.stack(tops), alone.topk(3).indices)
    assert not torch.allclose(logits.padded_logits(model, given), alone)


def test_an_effect_of_padding_that_begins_beyond_the_median_length_is_seen():
    model, given = LooksAhead(beyond=20), prompts((3, 5, 7, 9, 30))
    logits.try_padding(model, given)
    assert padding_known(model, "right") is False
    assert len(together(model, given)) == len(given)


def test_padding_is_tried_again_for_longer_prompts_and_only_for_these():
    model = LooksAhead(beyond=20)
    logits.try_padding(model, prompts((3, 9)))
    assert padding_known(model, "right") is True
    assert batching.pair_to_try(model, prompts((4, 8, 9))) is None
    assert batching.pair_to_try(model, prompts((30, 30))) is None  # nothing would be padded
    assert batching.pair_to_try(model, prompts((4, 30, 3, 8))) == (2, 1)
    logits.try_padding(model, prompts((4, 8, 30)))
    assert padding_known(model, "right") is False
    assert batching.pair_to_try(model, prompts((3, 90))) is None


@pytest.mark.parametrize(
    "change",
    [lambda model: model.double(), lambda model: model.set_attn_implementation("sdpa")],
    ids=["dtype", "attention"],
)
def test_padding_is_tried_again_where_the_model_computes_otherwise(change):
    model = build("llama")
    logits.try_padding(model, prompts((3, 9)))
    assert padding_known(model, "right") is True
    change(model)
    assert padding_known(model, "right") is None


def test_a_pair_to_try_is_of_prompts_that_may_share_a_pass():
    given = prompts((5, LIMIT - 2, LIMIT + 1, 30, 9))
    assert batching.pair_to_try(ruled("longrope"), given) == (2, 3)
    assert batching.pair_to_try(ruled("longrope"), given[:3]) == (0, 1)


class LooksAhead(torch.nn.Module):
    """Every position of a text beyond some length sees the mean of all: no causal model."""

    def __init__(self, beyond=0):
        super().__init__()
        self.table = torch.nn.Embedding(VOCABULARY, VOCABULARY)
        self.beyond = beyond
        self.eval()

    def forward(self, input_ids, **_):
        seen = self.table(input_ids)
        ahead = input_ids.shape[1] > self.beyond
        return _Output(seen + ahead * seen.mean(1, keepdim=True))


class _Output:
    def __init__(self, logits):
        self.logits = logits


class Digits:
    eos_token_id, pad_token_id, added_tokens_decoder = None, 0, {}

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(map(str, ids))


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_in_float64_answers_to_prompts_of_unequal_length_are_those_alone(
    attention, kept, monkeypatch
):
    model, given = build("qwen2-tied", torch.float64), prompts((5, 9, 2))
    monkeypatch.setattr(generation, "usable", lambda *_: kept)
    model.set_attn_implementation(attention)
    found = generate_answers(model, Digits(), given, max_new_tokens=6)
    assert found == [generate_answers(model, Digits(), [ids], max_new_tokens=6)[0] for ids in given]


def test_without_clamped_casts_padding_in_float64_is_nan(monkeypatch):
    from contextlib import nullcontext

    model, given = build("qwen2-tied", torch.float64), prompts((5, 9, 2))
    monkeypatch.setattr(generation, "usable", lambda *_: False)  # by generate() and its masks
    monkeypatch.setattr(generation, "clamped_casts", lambda model: nullcontext())
    monkeypatch.setattr(batching, "together", lambda m, p, **_: [list(range(len(p)))])
    with pytest.raises(UserError, match="NaN"):
        generate_answers(model, Digits(), given, max_new_tokens=6)


def test_a_dynamic_rope_reaches_as_far_as_its_factor():
    assert context_length(ruled("dynamic").config) == 4 * LIMIT
    assert context_length(ruled("dynamic in some layers").config) == 4 * LIMIT
    assert context_length(build("llama").config) == 32
    with pytest.raises(UserError, match=f"context of {4 * LIMIT}"):
        top_tokens(ruled("dynamic"), prompts([4 * LIMIT + 1]), 1)
