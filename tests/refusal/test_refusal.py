import logging
import math

import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY, build, ragged_prompts, with_lora
from toy_tokenizers import byte_bpe, metaspace, word_level
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from ntkprobe.errors import UserError
from ntkprobe.prompts.phrases import PAPER31, phrase_set, prefix_free
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.prompts.templates import RAW, Template, resolve_template
from ntkprobe.refusal import (
    phrase_ids,
    probability,
    reduce_phrases,
    refusal_log_probabilities,
    score_phrases,
)
from ntkprobe.refusal.rows import score_by_rows
from ntkprobe.refusal.trie import PhraseTrie, log_sums, score_by_trie
from ntkprobe.tiny import measure_path, model_path

# The paper's phrases with their real overlaps, folded into the small vocabulary of the models.
PHRASES = [tuple(t % VOCABULARY for t in ids) for ids in phrase_ids(byte_bpe(), PAPER31)]
PROMPTS = ragged_prompts((5, 3, 9, 1, 14))


def by_hand(model, prompt, phrase):
    """The definition: one forward pass per token."""
    text, total = prompt.tolist(), 0.0
    for token in phrase:
        logits = model(torch.tensor([text])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        text = [*text, token]
    return total


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "mixtral"])
@torch.no_grad()
def test_the_oracle_is_the_definition(name):
    model = build(name)
    scores = score_by_rows(model, PROMPTS[:2], PHRASES[2:6])
    expected = [[by_hand(model, prompt, ids) for ids in PHRASES[2:6]] for prompt in PROMPTS[:2]]
    torch.testing.assert_close(scores, torch.tensor(expected).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])  # the second caps its logits
@torch.no_grad()
def test_the_oracle_reads_the_positions_of_the_phrases_alone_with_the_same_numbers(name):
    model, prompt, phrases = build(name), PROMPTS[4], PHRASES[2:6]
    longest = max(map(len, phrases))
    text = torch.tensor([[*prompt, *ids, *[0] * (longest - len(ids))] for ids in phrases])
    plain = model(text).logits[:, len(prompt) - 1 : -1].double().log_softmax(-1)
    expected = [
        sum(row[t, i] for t, i in enumerate(ids)) for row, ids in zip(plain, phrases, strict=True)
    ]
    read = []
    hook = model.lm_head.register_forward_hook(lambda *call: read.append(call[2].shape[1]))
    found = score_by_rows(model, [prompt], phrases)[0]
    hook.remove()
    assert len(prompt) > 10 and read[-1] == longest
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_head_that_the_model_does_not_call_is_read_at_the_same_positions(monkeypatch):
    model = build("llama")
    expected = score_by_rows(model, PROMPTS[:2], PHRASES[:3])
    monkeypatch.setattr(model, "get_output_embeddings", lambda: torch.nn.Linear(1, 1))
    assert torch.equal(score_by_rows(model, PROMPTS[:2], PHRASES[:3]), expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_pass_over_the_trie_equals_the_oracle_on_every_architecture(name, attention):
    if attention == "sdpa" and name in ("gemma2", "gpt_oss"):
        pytest.skip("transformers gives this family no sdpa")
    model = build(name)
    model.set_attn_implementation(attention)
    expected = score_by_rows(model, PROMPTS, PHRASES)
    found = score_by_trie(model, PROMPTS, PhraseTrie.of(PHRASES))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_in_float64_the_two_agree_to_rounding():
    model = build("gpt2", torch.float64)
    expected = score_by_rows(model, PROMPTS, PHRASES)
    found = score_by_trie(model, PROMPTS, PhraseTrie.of(PHRASES))
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)


def test_an_adapter_counts():
    model = with_lora(build("llama"))
    found = score_phrases(model, PROMPTS, PHRASES)
    torch.testing.assert_close(found, score_by_rows(model, PROMPTS, PHRASES), atol=1e-5, rtol=0)
    with model.disable_adapter():
        assert (score_phrases(model, PROMPTS, PHRASES) - found).abs().max() > 0.1


def test_a_trie_whose_branches_see_each_other_scores_otherwise(monkeypatch):
    model = build("llama")
    everyone = property(lambda trie: torch.ones(2 * [len(trie.nodes) - 1], dtype=torch.bool).tril())
    expected = score_by_rows(model, PROMPTS, PHRASES)
    monkeypatch.setattr(PhraseTrie, "descent", everyone)
    found = score_by_trie(model, PROMPTS, PhraseTrie.of(PHRASES))
    assert (found - expected).abs().max() > 0.1


def test_the_trie_runs_each_beginning_once_and_no_last_token():
    trie = PhraseTrie.of([(1, 2, 3), (1, 2, 4), (5,)])
    assert trie.nodes == ((), (1,), (1, 2))
    assert trie.steps == (((0, 1), (1, 2), (2, 3)), ((0, 1), (1, 2), (2, 4)), ((0, 5),))
    assert len(PhraseTrie.of(PHRASES).nodes) < sum(map(len, PHRASES)) / 2


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_do_not_depend_on_the_batch_or_on_the_order_of_prompts(batch_size):
    model = build("gpt2")
    found = score_phrases(model, PROMPTS, PHRASES, batch_size=batch_size)
    backwards = score_phrases(model, PROMPTS[::-1], PHRASES, batch_size=3).flip(0)
    torch.testing.assert_close(found, backwards, atol=1e-5, rtol=0)


def test_a_large_vocabulary_makes_batches_smaller_and_no_other_numbers(monkeypatch):
    model, sizes = build("gpt2"), []
    expected = score_phrases(model, PROMPTS, PHRASES, batch_size=5)
    monkeypatch.setattr(probability, "LARGEST", 2 * len(PhraseTrie.of(PHRASES).nodes) * VOCABULARY)
    original = probability.score_by_trie

    def counted(model, batch, *rest):
        sizes.append(len(batch))
        return original(model, batch, *rest)

    monkeypatch.setattr(probability, "score_by_trie", counted)
    found = score_phrases(model, PROMPTS, PHRASES, batch_size=5)
    assert sizes == [2, 2, 2, 1]  # the first looks whether the model obeys masks
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 2])
def test_all_texts_of_one_length_have_probability_one(length):
    model = build("qwen2-tied", vocab_size=7)
    texts = torch.cartesian_prod(*[torch.arange(7)] * length).reshape(-1, length).tolist()
    scores = score_phrases(model, [torch.tensor([1, 2])], texts)
    torch.testing.assert_close(
        reduce_phrases(scores, texts), torch.zeros(1).double(), atol=1e-6, rtol=0
    )


def test_the_literal_sum_counts_an_extended_phrase_twice_and_prefix_free_once():
    ids, scores = [(1,), (1, 2), (3,), (3,)], torch.tensor([[0.5, 0.25, 0.2, 0.2]]).double().log()
    assert reduce_phrases(scores, ids).exp().item() == pytest.approx(1.15)
    assert reduce_phrases(scores, ids, "prefix_free").exp().item() == pytest.approx(0.7)


@pytest.mark.parametrize("tokenizer", [byte_bpe, metaspace])
def test_prefix_free_by_tokens_keeps_the_28_strings_of_the_paper(tokenizer):
    ids = phrase_ids(tokenizer(), PAPER31, Template("chat"))
    kept = phrase_ids(tokenizer(), prefix_free(PAPER31), Template("chat"))
    scores = torch.randn(3, 31, generator=torch.Generator().manual_seed(0)).double()
    columns = [PAPER31.index(phrase) for phrase in prefix_free(PAPER31)]
    torch.testing.assert_close(
        reduce_phrases(scores, ids, "prefix_free"), reduce_phrases(scores[:, columns], kept)
    )


def test_prefix_free_is_never_more_than_one_nor_than_literal():
    model = build("llama")
    scores = score_phrases(model, PROMPTS, PHRASES)
    free, literal = (reduce_phrases(scores, PHRASES, r) for r in ("prefix_free", "literal"))
    assert (free <= 0).all() and (free < literal).all()


def test_the_embedded_base_refuses_nothing_and_both_ways_agree_on_it():
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    template = resolve_template(tokenizer)
    prompts = PromptSet.from_file(measure_path()).sample(2)
    encoded = [template.encode(tokenizer, prompt) for prompt in prompts]
    ids = phrase_ids(tokenizer, PAPER31, template)
    found = reduce_phrases(score_phrases(model, encoded, ids), ids)
    expected = reduce_phrases(score_by_rows(model, encoded, ids), ids)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found < math.log(0.01)).all()


@pytest.mark.parametrize("reduction", ["literal", "prefix_free"])
def test_log_p_refuse_is_what_its_parts_give(reduction):
    model = build("gpt2", n_positions=64, vocab_size=len(byte_bpe()))
    found = refusal_log_probabilities(
        model, byte_bpe(), PROMPTS, phrase_set("paper31"), reduction=reduction
    )
    ids = phrase_ids(byte_bpe(), PAPER31)
    expected = reduce_phrases(score_by_rows(model, PROMPTS, ids), ids, reduction)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_phrases_may_be_given_as_ids():
    model = build("gpt2", n_positions=64, vocab_size=len(byte_bpe()))
    template = Template("chat")
    ids = template.encode_phrases(byte_bpe(), PAPER31)
    by_ids = refusal_log_probabilities(model, byte_bpe(), PROMPTS, ids)
    by_text = refusal_log_probabilities(model, byte_bpe(), PROMPTS, PAPER31, template=template)
    assert torch.equal(by_ids, by_text)


def test_a_phrase_that_the_vocabulary_cannot_write_has_probability_zero():
    ids = phrase_ids(word_level(), PAPER31)
    written = [phrase for phrase, each in zip(PAPER31, ids, strict=True) if each]
    assert written == ["No,", "I cannot"]
    scores = score_phrases(build("llama"), PROMPTS, ids)
    assert (scores.isfinite().sum(-1) == 2).all() and scores[0, 10] == -math.inf
    both = phrase_ids(word_level(), written)
    for reduction in ("literal", "prefix_free"):
        torch.testing.assert_close(
            reduce_phrases(scores, ids, reduction),
            reduce_phrases(score_phrases(build("llama"), PROMPTS, both), both, reduction),
        )


SMALL = dict(vocab_size=VOCABULARY, hidden_size=16)
ODD = {
    "ALiBi": lambda: BloomForCausalLM(BloomConfig(**SMALL, n_layer=2, n_head=4)),
    "state space": lambda: MambaForCausalLM(
        MambaConfig(**SMALL, num_hidden_layers=2, state_size=4)
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_model_that_knows_no_tree_of_tokens_is_scored_by_rows_and_the_log_says_so(kind, caplog):
    torch.manual_seed(0)
    model = ODD[kind]().eval()
    with caplog.at_level(logging.WARNING):
        found = score_phrases(model, PROMPTS, PHRASES)
    torch.testing.assert_close(found, score_by_rows(model, PROMPTS, PHRASES), atol=1e-5, rtol=0)
    assert "scored one by one" in caplog.text


def test_a_model_that_ignores_the_mask_is_found_out(monkeypatch, caplog):
    model = build("llama")
    everyone = property(lambda trie: torch.ones(2 * [len(trie.nodes) - 1], dtype=torch.bool).tril())
    monkeypatch.setattr(PhraseTrie, "descent", everyone)
    found = score_phrases(model, PROMPTS, PHRASES)
    torch.testing.assert_close(found, score_by_rows(model, PROMPTS, PHRASES))
    assert "is off by" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_trial_that_memory_does_not_suffice_for_is_no_odd_model(monkeypatch, caplog, error):
    def exhaust(*_):
        raise error

    monkeypatch.setattr("ntkprobe.refusal.probability.score_by_trie", exhaust)
    with pytest.raises(torch.OutOfMemoryError):
        score_phrases(build("llama"), PROMPTS, PHRASES)
    assert "scored one by one" not in caplog.text


def test_nothing_is_logged_for_a_model_that_obeys(caplog):
    score_phrases(build("gemma3"), PROMPTS, PHRASES)
    assert not caplog.text


def test_scoring_leaves_the_model_as_it_was():
    model = build("mistral")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score_phrases(model, PROMPTS, PHRASES)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def broken(value):
    model = build("gpt2")
    model.lm_head.weight.data[3] = value
    return model


@pytest.mark.parametrize(
    ("model", "prompts", "message"),
    [
        (lambda: broken(math.nan), PROMPTS, r"prompts? [\d, ]+ ha(s|ve) NaN or infinite"),
        (lambda: broken(math.inf), PROMPTS, r"prompts? [\d, ]+ ha(s|ve) NaN or infinite"),
        (lambda: build("gpt2"), [torch.ones(30).long()], "prompt 0 has 30 tokens.*context of 32"),
        (lambda: build("gpt2"), [PROMPTS[0], torch.ones(0).long()], "prompt 1 is empty"),
        (lambda: build("gpt2"), [torch.tensor([48])], "prompt 0 holds a token outside.* 48"),
        (lambda: build("gpt2"), [], "no prompts"),
        (lambda: build("gpt2").train(), PROMPTS, r"call model\.eval\(\)"),
        (lambda: build("gpt2").to("meta"), PROMPTS, "offloaded"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(model, prompts, message):
    with pytest.raises(UserError, match=message) as caught:
        score_phrases(model(), prompts, PHRASES)
    assert "\n" not in str(caught.value)


def test_phrases_of_another_models_tokenizer_are_refused():
    with pytest.raises(UserError, match=r"refusal phrase holds a token outside .*another model's"):
        score_phrases(build("gpt2"), PROMPTS, [(1, 2), (VOCABULARY,)])


def test_an_unknown_reduction_batch_size_or_vocabulary_is_refused():
    with pytest.raises(UserError, match=r"choose from \['literal', 'prefix_free'\]"):
        reduce_phrases(torch.zeros(1, 1).double(), [(1,)], "sum")
    with pytest.raises(UserError, match="give 1 or more"):
        score_phrases(build("gpt2"), PROMPTS, PHRASES, batch_size=0)
    with pytest.raises(UserError, match="none of 1 refusal phrases can be written"):
        phrase_ids(word_level(), ["My apologies"], RAW)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums_over_a_large_vocabulary_are_exact_to_a_millionth(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(11, 151_936, generator=generator)).to(dtype)
    found = log_sums(logits)
    torch.testing.assert_close(found, logits.double().logsumexp(-1), atol=1e-7, rtol=0)
    assert log_sums(torch.full((1, 5), math.nan)).isnan().all()
