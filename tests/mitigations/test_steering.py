"""Laws of the steering methods: equal to their slow definitions, and gone without a trace."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, build, perturbed, with_lora, worst_block_error
from every_family import tiny
from steered_models import (
    BOTH,
    ENDING,
    PROMPTS,
    SCANS,
    TEMPLATE,
    THREE,
    ablated,
    chatting,
    every_prompt,
    fitted,
    hidden_states,
    plain,
    rewritten,
)
from toy_tokenizers import byte_bpe
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    GenerationConfig,
    TextIteratorStreamer,
)

from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.gram import Gram
from ntkprobe.kernel import Probe, last_logits
from ntkprobe.mitigations import applied
from ntkprobe.mitigations.activations import ablation_hooks, require_ablated
from ntkprobe.models.architecture import Before, decoder_layers, hidden_state, hooked, writers
from ntkprobe.models.generation import left_padded
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.refusal import phrase_ids, score_phrases


def slowly(name, method, model, mitigation, ids):
    """Return one text's logits by the method's definition, without a hook of ours."""
    if method == "surgical":
        unit, r = mitigation.false_refusal, mitigation.true_refusal
        with ablated(name, model, unit, 0.7, r, 0.3, mitigation.block):
            return plain(model, ids)
    end, harmful = scans_by_hand(model, mitigation, ids)
    sign = 1 if harmful else -1
    push = torch.zeros(len(ids), 1)
    push[end:] = sign * 0.8
    blocks = decoder_layers(model)
    changes = [
        (blocks[at], None, lambda h, at=at: h + push * mitigation.vectors[at]) for at in (1, 2)
    ]
    with rewritten(changes):
        return plain(model, ids)


def scans_by_hand(model, mitigation, ids):
    """Return where the instruction ends, and whether the prompt counts as harmful."""
    text, size = ids.tolist(), len(ENDING)
    end = next(i for i in range(len(text)) if text[i - size + 1 : i + 1] == ENDING)
    sure = torch.tensor(TEMPLATE.encode_phrases(byte_bpe(), ["Sure"])[0])
    leaving = hidden_states(model, torch.cat([ids[: end + 1], sure]))
    cosines = [
        torch.cosine_similarity(leaving[at, end] - leaving[at, -1], mitigation.transitions[at], 0)
        for at in (1, 2, 3)
    ]
    return end, sum(cosines) / 3 >= mitigation.threshold


@THREE
@BOTH
def test_a_steered_model_is_its_slow_definition(name, method):
    model, mitigation = fitted(name, method)
    for ids in every_prompt()[::3]:
        text = torch.cat([ids, torch.tensor([70, 71])])
        expected = slowly(name, method, model, mitigation, text)
        with applied(mitigation, model, byte_bpe()):
            found = plain(model, text)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert (found[-1] - plain(model, text)[-1]).abs().max() > 1e-2


def test_scans_pushes_both_ways():
    model, mitigation = fitted("gpt2", "scans")
    assert set(mitigation.harmful(model, every_prompt()).tolist()) == {True, False}


@pytest.mark.parametrize("name", ["gpt2", "qwen2-tied"])
def test_full_ablation_is_that_of_the_weights_which_write_the_stream(name):
    model, mitigation = fitted(name, "surgical")
    with applied(replace(mitigation, coefficient=1.0, addition=0.0), model, byte_bpe()):
        found = plain(model, every_prompt()[0])
    other = chatting(name, tie_word_embeddings=True)
    unit, project = (
        mitigation.false_refusal,
        torch.eye(16) - torch.outer(*[mitigation.false_refusal] * 2),
    )
    head = other.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # what reads is left alone
    written = [m.weight for m in other.modules() if isinstance(m, torch.nn.Embedding)]
    for parameter in written:
        parameter.data = parameter.data @ project
    for block in decoder_layers(other):
        outputs = [
            m for n, m in block.named_modules() if n.endswith(("c_proj", "o_proj", "down_proj"))
        ]
        for layer in outputs:
            by_row = name == "gpt2"
            layer.weight.data = (
                layer.weight.data @ project if by_row else project @ layer.weight.data
            )
            if layer.bias is not None:
                layer.bias.data = layer.bias.data @ project
    torch.testing.assert_close(plain(other, every_prompt()[0]), found, atol=1e-5, rtol=0)
    assert abs(float(unit.norm()) - 1) < 1e-6


@BOTH
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_weight_zero_is_the_identity_bit_for_bit(name, method):
    model, mitigation = fitted(name, method)
    off = dict(coefficient=0.0, addition=0.0) if method == "surgical" else dict(weight=0.0)
    before = plain(model, every_prompt()[0])
    with applied(replace(mitigation, **off), model, byte_bpe()):
        assert torch.equal(plain(model, every_prompt()[0]), before)


@BOTH
def test_no_trace_is_left(method):
    model, mitigation = fitted("qwen2-tied", method)
    before = plain(model, every_prompt()[0])
    with pytest.raises(RuntimeError), applied(mitigation, model, byte_bpe()):
        plain(model, every_prompt()[0])
        raise RuntimeError
    assert torch.equal(plain(model, every_prompt()[0]), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def generated(model, prompts, seed=None, **settings):
    """Return the answers' tokens and their logits, in one batch padded on the left."""
    ids, mask = left_padded(prompts)
    how = GenerationConfig(
        max_new_tokens=5,
        do_sample=seed is not None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )
    torch.manual_seed(seed or 0)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=how)
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, 1)


@THREE
@BOTH
def test_generation_is_the_slow_definition_token_by_token(name, method):
    model, mitigation = fitted(name, method)
    prompts = every_prompt()[2::3]
    with applied(mitigation, model, byte_bpe()):
        answers, logits = generated(model, prompts)
    for ids, answer, found in zip(prompts, answers, logits, strict=True):
        text = torch.cat([ids, answer])
        expected = slowly(name, method, model, mitigation, text)[len(ids) - 1 : -1]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@BOTH
@pytest.mark.parametrize("seed", [None, 3])
def test_a_batch_and_no_cache_answer_like_one_prompt_with_a_cache(method, seed):
    model, mitigation = fitted("qwen2-tied", method)
    prompts = every_prompt()[::4]
    with applied(mitigation, model, byte_bpe()):
        together, logits = generated(model, prompts)
        uncached = generated(model, prompts[1:2], seed, use_cache=False)
        alone = generated(model, prompts[1:2], seed)
    assert torch.equal(uncached[0], alone[0])
    torch.testing.assert_close(uncached[1], alone[1], atol=1e-5, rtol=0)
    if seed is None:
        assert torch.equal(together[1], alone[0][0])
        torch.testing.assert_close(logits[1], alone[1][0], atol=1e-5, rtol=0)


@BOTH
def test_beams_with_and_without_a_cache_agree(method):
    model, mitigation = fitted("qwen2-tied", method)
    with applied(mitigation, model, byte_bpe()):
        cached = generated(model, every_prompt()[::4], num_beams=2)[0]
        uncached = generated(model, every_prompt()[::4], num_beams=2, use_cache=False)[0]
    assert torch.equal(cached, uncached)


@BOTH
def test_streaming_gives_the_same_answer(method):
    model, mitigation = fitted("gpt2", method)
    ids = every_prompt()[0][None]
    streamer = TextIteratorStreamer(byte_bpe(), skip_prompt=True)
    how = GenerationConfig(max_new_tokens=5, pad_token_id=0)
    with applied(mitigation, model, byte_bpe()):
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=how, streamer=streamer
        )
    assert "".join(streamer) == byte_bpe().decode(out[0, ids.shape[1] :])


@BOTH
def test_an_adapter_is_steered_like_the_merged_model(method):
    adapted = with_lora(chatting("qwen2-tied"))
    mitigation = fitted("qwen2-tied", method)[1]
    mitigation = mitigation.fit(adapted, byte_bpe(), PROMPTS)
    prompts = every_prompt()[:3]
    with applied(mitigation, adapted, byte_bpe()):
        found = generated(adapted, prompts)[1]
    merged = adapted.merge_and_unload()
    with applied(mitigation, merged, byte_bpe()):
        expected = generated(merged, prompts)[1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(found, generated(merged, prompts)[1], atol=1e-2)


@THREE
@BOTH
def test_a_steered_refusal_is_the_product_of_its_tokens(name, method):
    model, mitigation = fitted(name, method)
    phrases = phrase_ids(byte_bpe(), ["I cannot", "I'm sorry, but I cannot", "No,"], TEMPLATE)
    prompts = every_prompt()[::4]
    with applied(mitigation, model, byte_bpe()):
        found = score_phrases(model, prompts, phrases)
    for row, ids in enumerate(prompts):
        for column, phrase in enumerate(phrases):
            text = torch.cat([ids, torch.tensor(phrase)])
            logits = slowly(name, method, model, mitigation, text)[len(ids) - 1 : -1].double()
            expected = logits.log_softmax(-1)[range(len(phrase)), list(phrase)].sum()
            torch.testing.assert_close(found[row, column], expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@THREE
@BOTH
def test_gram_measures_the_steered_model(name, method):
    model, mitigation = fitted(name, method)
    prompts = sorted(every_prompt(), key=len)
    probes = [
        Probe(ids, torch.tensor([3, 40, 100])) for ids in (prompts[0], prompts[5], prompts[-1])
    ]
    unsteered = Dense()(model, probes, "all")
    with applied(mitigation, model, byte_bpe()):
        expected = Dense()(model, probes, "all")
        found = Gram()(model, probes, "all")
        one_by_one = Gram(batch_size=1)(model, probes, "all")
    assert worst_block_error(found, expected) < 1e-4
    assert worst_block_error(one_by_one, expected) < 1e-4
    assert worst_block_error(unsteered, expected) > 1e-2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_block_adds_to_the_stream_is_what_its_writers_give(name):
    model, found = build(name), {}
    block = decoder_layers(model)[0]
    hooks = [
        (w, lambda m, i, o, k=k: found.update({k: hidden_state(o)}))
        for k, w in enumerate(writers(block))
    ]
    entered = Before(
        lambda m, args, kw: found.update(source=args[0] if args else kw["hidden_states"])
    )
    hooks += [(block, entered), (block, lambda m, i, o: found.update(output=hidden_state(o)))]
    with hooked(hooks):
        plain(model, torch.arange(6))
    total = found.pop("output") - found.pop("source")
    torch.testing.assert_close(sum(found.values()), total, atol=1e-5, rtol=0)


def falcon_h1():
    """Return a model whose blocks have attention and a state space side by side."""
    widths = dict(hidden_size=16, intermediate_size=24, head_dim=4, mamba_d_ssm=32, mamba_d_head=8)
    counts = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    state = dict(mamba_n_heads=4, mamba_d_state=4, mamba_n_groups=1)
    torch.manual_seed(0)
    config = FalconH1Config(vocab_size=48, **widths, **counts, **state)
    return perturbed(FalconH1ForCausalLM(config)).double().eval()


ODD_BLOCKS = {  # what an ablation that knew attention and one MLP left in the stream
    "glm4": "norms behind both, under names of their own",
    "afmoe": "likewise",
    "gemma4_text": "a third writer",
    "granitemoeshared": "a mixture beside an MLP that all tokens share",
    "recurrent_gemma": "a mixer of positions by another name",
    "falcon_h1": "two mixers side by side",
}


@pytest.mark.parametrize("name", ["llama", *ODD_BLOCKS])
def test_ablation_leaves_nothing_of_a_direction_behind_any_block(name):
    model, left = falcon_h1() if name == "falcon_h1" else tiny(name), []
    unit = torch.nn.functional.normalize(torch.linspace(-1, 2, 16, dtype=torch.float64), dim=0)
    states = [
        (block, lambda m, i, o: left.append((hidden_state(o) @ unit).abs().max()))
        for block in decoder_layers(model)
    ]
    ids = torch.tensor([3, 1, 4, 1, 5])
    with torch.no_grad(), hooked(states):
        model(ids[None], use_cache=False)
    present, _ = min(left), left.clear()
    with torch.no_grad(), hooked([*ablation_hooks(model, unit, 1.0), *states]):
        model(ids[None], use_cache=False)
    assert present > 1e-2 and max(left) < 1e-6
    require_ablated(model, ids)


@pytest.mark.parametrize("name", ["openai-gpt", "doge"])
def test_a_model_whose_blocks_write_past_their_modules_is_refused(name):
    with pytest.raises(UserError, match=r"cannot ablate a direction from .*% of a direction stays"):
        require_ablated(tiny(name), torch.tensor([3, 1, 4, 1, 5]))


def test_one_token_that_ends_an_instruction_is_found_beside_longer_prompts():
    # `[/INST]` is one token of Mistral's, and passes are padded with each prompt's own last token.
    tokenizer, model = deepcopy(byte_bpe()), chatting("qwen2-tied")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|start_header_id|>{{ m.content }}"
        "<|end_header_id|>{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    template = resolve_template(tokenizer)
    scans = SCANS.fit(model, tokenizer, PROMPTS)
    ids = [torch.tensor(template.encode(tokenizer, prompt.text)) for prompt in PROMPTS]
    assert scans.ending is not None and len(scans.ending) == 1
    before = last_logits(model, ids)
    with applied(scans, model, tokenizer), torch.no_grad():
        alone = torch.cat([last_logits(model, [row]) for row in ids])
        together = last_logits(model, ids)
    torch.testing.assert_close(together, alone)
    assert ((alone - before).abs().amax(-1) > 0.1).all()


def test_scans_refuses_what_it_cannot_place():
    model, mitigation = fitted("gpt2", "scans")
    with (
        applied(mitigation, model, byte_bpe()),
        pytest.raises(UserError, match="no end of an instr"),
    ):
        plain(model, torch.arange(8))
    with torch.no_grad():
        cache = model(every_prompt()[0][None]).past_key_values
    with applied(mitigation, model, byte_bpe()), pytest.raises(UserError, match="began before"):
        model(torch.tensor([[5]]), past_key_values=cache)
