"""Decoding methods while a model generates: batches, padding, passes, caches, and no trace."""

import pytest
import torch
from architectures import build, with_lora
from decoding_runs import STEPS, TEXTS, WORDS, answers, context, exactly, model_of, prompts
from toy_tokenizers import byte_bpe
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from ntkprobe.mitigations import applied
from ntkprobe.mitigations.adacd import Adacd
from ntkprobe.mitigations.prompt import Prompt
from ntkprobe.mitigations.safe_decoding import SafeDecoding
from ntkprobe.mitigations.self_cd import SelfCd
from ntkprobe.mitigations.ssd import Ssd
from ntkprobe.models.generation import generate_answers, left_padded
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.refusal import score_phrases

NEUTRAL = [Adacd(steps=0), SelfCd(ratio=1), Prompt(system=""), SafeDecoding(steps=0)]
NEUTRAL += [Ssd(alpha_shared=0, alpha_either=0)]


@pytest.mark.parametrize("method", NEUTRAL, ids=lambda m: type(m).__name__)
def test_neutral_settings_are_the_identity_bit_for_bit(method):
    model = model_of("gpt2")
    plain, found = answers(model, None, "chat"), answers(model, method, "chat")
    assert found[0] == plain[0] and torch.equal(found[1], plain[1])


def every_method(experts, draft, name="gpt2"):
    return [
        Adacd(),
        SelfCd(),
        Prompt(),
        SafeDecoding(expert=str(experts / name)),
        Ssd(draft=draft),
    ]


@pytest.mark.parametrize("number", range(5))
def test_batched_is_one_by_one(number, experts, draft):
    model = build("gpt2", vocab_size=WORDS, n_positions=256)
    method = every_method(experts, draft)[number]
    template = resolve_template(byte_bpe(), "chat")
    ids = [template.encode(byte_bpe(), text) for text in TEXTS]
    settings = dict(max_new_tokens=8, stop_ids=[template.end_of_turn(byte_bpe())])
    with applied(method, model, byte_bpe()) as processors:
        settings["logits_processor"] = processors
        found = generate_answers(model, byte_bpe(), ids, batch_size=3, **settings)
        assert found == generate_answers(model, byte_bpe(), ids, batch_size=1, **settings)
    assert found != generate_answers(model, byte_bpe(), ids, max_new_tokens=8)


def test_without_begin_leading_pad_tokens_count_as_padding(draft):
    model, template = model_of("qwen2-untied"), resolve_template(byte_bpe(), "chat")
    rows = [template.encode(byte_bpe(), text) for text in TEXTS]
    ids, mask = left_padded(rows, byte_bpe().pad_token_id)
    settings = dict(input_ids=ids, attention_mask=mask, max_new_tokens=STEPS, do_sample=False)
    expected = answers(model, Adacd(), "chat")[0]
    with applied(Adacd(), model, byte_bpe()) as processors, exactly(model):
        for _ in range(2):  # the second time, the processor finds out that it begins anew
            out = model.generate(**settings, logits_processor=processors)
            assert out[:, ids.shape[1] :].tolist() == expected


def test_streaming_yields_the_same_tokens():
    class Streamer:
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens.extend(value.flatten().tolist())

        def end(self):
            self.tokens.append(None)

    streamer = Streamer()
    found = answers(model_of("gpt2"), Adacd(), "chat", TEXTS[:1], streamer=streamer)[0]
    assert streamer.tokens[-STEPS - 1 :] == [*found[0], None]


@pytest.mark.parametrize("number", range(5))
def test_nothing_is_left_behind(number, experts, draft):
    name = "gpt2"
    model = with_lora(build(name, vocab_size=WORDS, **context(name)))
    ids = torch.tensor([prompts("chat")[0]])
    before = model(ids).logits, [p.requires_grad for p in model.parameters()]
    answers(model, every_method(experts, draft)[number], "chat", steps=3)
    assert torch.equal(model(ids).logits, before[0])
    assert [p.requires_grad for p in model.parameters()] == before[1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def rows_of_each_pass(name, method, spec="chat", texts=TEXTS):
    model, rows = model_of(name), []
    answers(model, method, spec, texts)  # a model is tried once, by passes that are not counted
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda m, args, out: rows.append(len(out)))
    try:
        answers(model, method, spec, texts)
    finally:
        handle.remove()
    return rows


def test_both_branches_are_one_pass_and_nothing_is_computed_after_the_last_changed_token(gemma):
    assert rows_of_each_pass("gpt2", Adacd(steps=4)) == [3, 3, 6, 6, 6] + [3] * 8
    assert rows_of_each_pass("gpt2", Adacd(steps=3), texts=TEXTS[:1]) == [1, 1, 2, 2] + [1] * 9
    apart = rows_of_each_pass("gemma2", Adacd(steps=4, template=gemma), gemma)  # sliding windows
    assert apart == [3] * (STEPS + 4)


def test_one_pass_for_both_leaves_generate_its_own_cache():
    model, ids = model_of("qwen2-untied"), torch.tensor(prompts("chat")[:1])
    settings = dict(max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    with applied(Adacd(steps=3), model, byte_bpe()) as processors, exactly(model):
        found = model.generate(ids, logits_processor=processors, **settings)
    with exactly(model), torch.no_grad():
        expected = model(found.sequences[:, :-1]).past_key_values
    for layer, other in zip(found.past_key_values.layers, expected.layers, strict=True):
        assert torch.allclose(layer.keys, other.keys) and layer.keys.shape == other.keys.shape


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]])
@pytest.mark.parametrize("part", ["the last block", "the output matrix"])
def test_a_pass_that_fails_leaves_the_next_answers_alone(texts, part):
    model, template = build("gpt2", vocab_size=WORDS, n_positions=256), "chat"
    ids = [resolve_template(byte_bpe(), template).encode(byte_bpe(), text) for text in texts]
    module = model.lm_head if part == "the output matrix" else model.transformer.h[-1]
    passes = []

    def exhaust(*_):
        passes.append(1)
        if len(passes) == 4:  # the second pass of both branches
            raise torch.OutOfMemoryError("no memory left")

    with applied(Adacd(), model, byte_bpe()) as processors:
        how = dict(max_new_tokens=6, logits_processor=processors)
        expected = generate_answers(model, byte_bpe(), ids, **how)
        handle = module.register_forward_pre_hook(exhaust)
        with pytest.raises(torch.OutOfMemoryError):
            generate_answers(model, byte_bpe(), ids, **how)
        handle.remove()
        assert generate_answers(model, byte_bpe(), ids, **how) == expected
        both = generate_answers(model, byte_bpe(), [*ids, ids[0]], **how)
    assert both[: len(ids)] == expected


def test_other_processors_may_come_before_and_behind():
    model, ids = model_of("gpt2"), torch.tensor([prompts("chat")[0]])
    with applied(Adacd(), model, byte_bpe()) as processors:
        both = LogitsProcessorList([*processors, TemperatureLogitsWarper(0.5)])
        settings = dict(max_new_tokens=4, do_sample=False, suppress_tokens=[1, 2, 3])
        settings |= dict(output_scores=True, return_dict_in_generate=True)
        out = model.generate(ids, logits_processor=both, **settings)
    assert not torch.stack(out.scores).isnan().any()
    assert torch.stack(out.scores)[:, 0, 1:4].isneginf().all()


def test_refusals_under_prompt_are_those_of_prompts_with_the_message():
    model = build("qwen2-untied", vocab_size=WORDS, max_position_embeddings=256)
    phrases = [byte_bpe().encode(text) for text in ("I cannot", "No, ", "No.")]
    expected = score_phrases(model, prompts("chat", Prompt.system), phrases)
    with applied(Prompt(), model, byte_bpe()) as processors:
        found = score_phrases(model, prompts("chat"), phrases, logits_processor=processors)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, score_phrases(model, prompts("chat"), phrases), atol=1e-2)
