"""Laws of the decoding methods: AdaCD, SelfCD, Prompt, SafeDecoding and SSD."""

import math
import shutil
from contextlib import nullcontext
from functools import cache, partial

import pytest
import slow_decoding as slow
import torch
from architectures import build, with_lora
from peft import PeftModel
from safetensors.torch import load_file, save_file
from toy_tokenizers import byte_bpe, metaspace
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from ntkprobe.errors import UserError
from ntkprobe.mitigations import applied, load, save
from ntkprobe.mitigations.adacd import Adacd
from ntkprobe.mitigations.prompt import Prompt
from ntkprobe.mitigations.safe_decoding import SafeDecoding
from ntkprobe.mitigations.self_cd import SelfCd
from ntkprobe.mitigations.ssd import Ssd
from ntkprobe.mitigations.storage import digest
from ntkprobe.mitigations.system_messages import SystemMessage, real_rows
from ntkprobe.mitigations.token_candidates import either_candidates, shared_candidates
from ntkprobe.models.generation import generate_answers, left_padded
from ntkprobe.models.precision import Float64Throughout
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.refusal import score_phrases

WORDS = 640
STEPS = 12
TEXTS = ["How do I kill a python process?", "No.", "Sure, here is how: first"]
GEMMA = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
FAMILIES = {"qwen2-untied": "chat", "gemma2": "gemma", "gpt2": "raw"}


@cache
def model_of(name):
    return build(name, torch.float64, vocab_size=WORDS, **_context(name))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    path = tmp_path_factory.mktemp("templates") / "gemma.jinja"
    path.write_text(GEMMA)
    return str(path)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Return a folder with a LoRA adapter for each family."""
    place = tmp_path_factory.mktemp("experts")
    for name in FAMILIES:
        fresh = build(name, vocab_size=WORDS, **_context(name))
        with_lora(fresh, r=3, use_rslora=name == "gpt2").save_pretrained(place / name)
    return place


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    """Return the folder of a small model with the same tokenizer and fewer unused words."""
    place = tmp_path_factory.mktemp("draft")
    words = len(byte_bpe())
    build("llama", seed=5, vocab_size=words, max_position_embeddings=256).save_pretrained(place)
    byte_bpe().save_pretrained(place)
    return str(place)


def _context(name):
    return {"n_positions": 256} if name == "gpt2" else {"max_position_embeddings": 256}


def answers(model, method, spec, texts=TEXTS, steps=STEPS, **settings):
    """Return new tokens and scores, [rows, steps] and [steps, rows, words], of one padded batch."""
    template = resolve_template(byte_bpe(), spec)
    ids, mask = left_padded([template.encode(byte_bpe(), text) for text in texts], 0)
    settings = dict(do_sample=False, max_new_tokens=steps, pad_token_id=0) | settings
    with applied(method, model, byte_bpe()) as processors, exactly(model):
        for processor in processors:
            processor.begin(mask)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=processors,
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
        )
    return out.sequences[:, ids.shape[1] :].tolist(), torch.stack(out.scores)


def exactly(model):
    """Return the context for a model in float64, which transformers would else round to float32."""
    return Float64Throughout() if model.dtype == torch.float64 else nullcontext()


def under(template, text, message):
    """Return a text's ids below a system message, as the beginning of a learnt conversation."""
    ids, learnt = template.encode_pair(byte_bpe(), text, "Yes", message)
    return ids[: learnt.index(True)]


def prompts(spec, message=None):
    """Return each text's ids, rendered anew with a system message."""
    template = resolve_template(byte_bpe(), spec)
    if message is None:
        return [template.encode(byte_bpe(), text) for text in TEXTS]
    if template.name == "chat":
        return [under(template, text, message) for text in TEXTS]
    return [template.encode(byte_bpe(), f"{message}\n\n{text}") for text in TEXTS]


def require_formula(found, plain, other, starts, formula, steps=STEPS):
    """Compare the scores of every step with a formula's, along the answers that were found."""
    tokens, scores = found
    assert scores.dtype == torch.float64
    for row, answer in enumerate(tokens):
        rule = formula()
        all_z = slow.logits_along(plain, starts[0][row], answer)
        all_other = slow.logits_along(other, starts[1][row], answer)
        for step, (z, other_z) in enumerate(zip(all_z, all_other, strict=True)):
            expected = rule(z[: len(other_z)], other_z) if step < steps else z
            wanted = torch.full((len(z),), -math.inf, dtype=torch.float64)
            wanted[: len(expected)] = torch.tensor(expected, dtype=torch.float64)
            there = scores[step, row]
            if hasattr(rule, "chose"):
                rule.chose(answer[step])
            assert torch.equal(there.isneginf(), wanted.isneginf())
            finite = ~wanted.isneginf()
            assert (there[finite] - wanted[finite]).abs().max() < 1e-8


@pytest.fixture(params=FAMILIES)
def family(request, gemma):
    spec = FAMILIES[request.param]
    return model_of(request.param), gemma if spec == "gemma" else spec


@pytest.mark.slow
@pytest.mark.parametrize("space", ["logit", "probability"])
def test_adacd_is_its_formula_for_k_tokens_and_then_the_plain_model(family, space):
    model, spec = family
    method = Adacd(template=spec, space=space)
    found = answers(model, method, spec)
    starts = prompts(spec), prompts(spec, method.system)
    formula = partial(slow.adacd, space=space)
    require_formula(found, model, model, starts, lambda: formula, steps=10)
    assert found[0] != answers(model, None, spec)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "formula"), [(SelfCd, slow.self_cd), (Prompt, slow.prompt)])
def test_selfcd_and_prompt_are_their_formulas_for_every_token(family, method, formula):
    model, spec = family
    chosen = method(template=spec)
    found = answers(model, chosen, spec)
    starts = prompts(spec), prompts(spec, chosen.system)
    require_formula(found, model, model, starts, lambda: formula)
    assert found[0] != answers(model, None, spec)[0]


def test_safedecoding_is_its_formula_for_m_tokens(family, experts):
    model, spec = family
    name = next(n for n in FAMILIES if model_of(n) is model)
    found = answers(model, SafeDecoding(expert=str(experts / name), steps=4), spec)
    fresh = build(name, torch.float64, vocab_size=WORDS, **_context(name))
    expert = PeftModel.from_pretrained(fresh, str(experts / name)).eval()
    formula = slow.safe_decoding
    require_formula(found, model, expert, [prompts(spec)] * 2, lambda: formula, steps=4)
    assert found[0] != answers(model, None, spec)[0]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, dict(window=2, common=4, threshold=0.5)])
def test_ssd_is_its_formula_through_both_modes(family, draft, settings):
    model, spec = family
    found = answers(model, Ssd(draft=draft, **settings), spec)
    small = load_small(draft)
    require_formula(found, model, small, [prompts(spec)] * 2, partial(slow.Ssd, **settings))
    assert found[0] != answers(model, None, spec)[0]


def load_small(folder):
    words = len(byte_bpe())
    return build("llama", seed=5, vocab_size=words, max_position_embeddings=256).double()


def test_adacd_reinforces_where_both_agree_and_only_if_the_plain_model_is_as_sure():
    z = torch.tensor([[4.0, 1, 0, -9], [4, 1, 0, -9], [4, 1, 0, -9]])
    z_p = torch.tensor([[5.0, 1, 0, 2], [0, 1, 6, 2], [9, 1, 0, 2]])
    method = Adacd()
    assert method.reinforces(z, z_p).tolist() == [True, False, True]
    assert Adacd(agreement=1.0).reinforces(z, z_p).tolist() == [True, False, False]
    for space in ("logit", "probability"):
        found = Adacd(space=space).combine(z, z_p)
        rows = zip(z.tolist(), z_p.tolist(), strict=True)
        expected = torch.tensor([slow.adacd(*row, space=space) for row in rows])
        assert torch.allclose(found, expected, atol=1e-5)
        assert found[:, 3].isneginf().all()  # implausible


def test_the_printed_space_subtracts_more_than_there_is():
    z, z_p = torch.randn(2, 8, 50, generator=torch.Generator().manual_seed(0))
    suppressed = ~Adacd().reinforces(z, z_p)
    total = z_p.softmax(-1) - 4.5 * (z_p - z).softmax(-1)
    assert suppressed.any() and torch.allclose(total.sum(-1), torch.tensor(1 - 4.5))
    found = Adacd(space="probability", plausibility=0).combine(z, z_p)
    assert torch.equal(found.argmax(-1)[suppressed], total.argmax(-1)[suppressed])


@pytest.mark.parametrize("space", ["logit", "probability"])
def test_a_token_that_is_ruled_out_before_has_no_part_in_adacd(space):
    z, z_p = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    method = Adacd(space=space, plausibility=0, agreement=0)
    kept = [0, 1, 3, 4, 5, 6, 7, 8]
    found = method.combine(z.index_fill(1, torch.tensor([2]), -math.inf), z_p)
    assert found[:, 2].isneginf().all() and not found.isnan().any()
    pushed = (z_p - z)[:, kept].softmax(-1)
    printed = z_p.softmax(-1)[:, kept] + method.alpha * pushed
    expected = printed.log() if space == "probability" else method.combine(z, z_p)[:, kept]
    assert torch.allclose(found[:, kept], expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 40])
@torch.no_grad()
def test_candidates_are_those_of_sorted_lists(count, monkeypatch):
    monkeypatch.setattr("ntkprobe.mitigations.token_candidates.FIRST_LOOK", 4)
    p, q = torch.rand(2, 5, 40, generator=torch.Generator().manual_seed(1)).double()
    found, union = shared_candidates(p, q, count), either_candidates(p, q, count)
    for row in range(5):
        lists = p[row].tolist(), q[row].tolist()
        assert set(found[row].nonzero()[:, 0].tolist()) == slow.shared(*lists, count)
        tops = [set(slow.ranking(each)[:count]) for each in lists]
        assert set(union[row].nonzero()[:, 0].tolist()) == tops[0] | tops[1]


def test_another_expert_in_the_same_folder_is_another_method(experts, tmp_path):
    expert = shutil.copytree(experts / next(iter(FAMILIES)), tmp_path / "expert")
    place = save(SafeDecoding(expert=str(expert)), tmp_path / "method")
    before = digest(place)
    assert digest(place) == before and before.startswith("safe_decoding#")
    weights = load_file(expert / "adapter_model.safetensors")
    changed = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(changed, expert / "adapter_model.safetensors", {"format": "pt"})
    assert digest(place) != before


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


def test_a_bos_that_is_the_padding_token_is_kept():
    padding = byte_bpe().pad_token_id
    ids = torch.tensor([[padding, padding, 7], [padding, 8, padding]])
    assert real_rows(byte_bpe(), ids) == [[padding, 7], [padding, 8, padding]]


def test_sampling_draws_from_the_formulas_distribution(gemma):
    model, method = model_of("gemma2"), SelfCd(template=gemma)
    torch.manual_seed(0)
    settings = dict(do_sample=True, top_k=0, temperature=1.0)
    found = answers(model, method, gemma, **settings)
    starts = prompts(gemma), prompts(gemma, method.system)
    require_formula(found, model, model, starts, lambda: slow.self_cd)
    assert found[0] != answers(model, method, gemma)[0]


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


def test_a_model_with_an_adapter_is_contrasted_with_itself(experts):
    name = "qwen2-untied"
    base = build(name, torch.float64, vocab_size=WORDS, **_context(name))
    model = with_lora(base)
    starts = prompts("chat"), prompts("chat", Adacd.system)
    found = answers(model, Adacd(), "chat")
    require_formula(found, model, model, starts, lambda: slow.adacd, steps=10)
    with model.disable_adapter():
        assert found[0] != answers(model, Adacd(), "chat")[0]


def test_the_expert_stands_in_for_the_models_own_adapter(experts):
    name = "qwen2-untied"
    model = with_lora(build(name, torch.float64, vocab_size=WORDS, **_context(name)))
    fresh = build(name, torch.float64, vocab_size=WORDS, **_context(name))
    expert = PeftModel.from_pretrained(fresh, str(experts / name)).eval()
    found = answers(model, SafeDecoding(expert=str(experts / name), steps=3), "chat")
    starts = [prompts("chat")] * 2
    require_formula(found, model, expert, starts, lambda: slow.safe_decoding, steps=3)


@pytest.mark.parametrize("number", range(5))
def test_nothing_is_left_behind(number, experts, draft):
    name = "gpt2"
    model = with_lora(build(name, vocab_size=WORDS, **_context(name)))
    ids = torch.tensor([prompts("chat")[0]])
    before = model(ids).logits, [p.requires_grad for p in model.parameters()]
    answers(model, every_method(experts, draft)[number], "chat", steps=3)
    assert torch.equal(model(ids).logits, before[0])
    assert [p.requires_grad for p in model.parameters()] == before[1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def rows_of_each_pass(name, method, spec="chat", texts=TEXTS):
    model, rows = model_of(name), []
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


@pytest.mark.parametrize("spec", ["chat", "llama-3", "raw", "gemma"])
def test_the_message_goes_where_the_template_has_it(spec, gemma):
    known = resolve_template(byte_bpe(), gemma if spec == "gemma" else spec)
    message = SystemMessage.of(byte_bpe(), "Be kind!", gemma if spec == "gemma" else spec)
    for text in (*TEXTS, " and\nmore\n"):
        if spec in ("chat", "llama-3"):
            expected = under(known, text, "Be kind!")
        else:
            expected = known.encode(byte_bpe(), f"Be kind!\n\n{text}")
        assert message.put_into([known.encode(byte_bpe(), text)]) == [expected]


@pytest.mark.parametrize("spec", ["chat", "llama-3", "raw", "gemma"])
def test_the_message_begins_the_users_turn_where_it_is_asked_to(spec, gemma):
    name = gemma if spec == "gemma" else spec
    known = resolve_template(byte_bpe(), name)
    message = SystemMessage.of(byte_bpe(), "Be kind!", name, "user")
    for text in (*TEXTS, " and\nmore\n"):
        own = text.lstrip() if spec == "llama-3" else text  # which trims what the user says
        expected = known.encode(byte_bpe(), f"Be kind!\n\n{own}")
        assert message.put_into([known.encode(byte_bpe(), text)]) == [expected]


@pytest.mark.parametrize(("method", "formula"), [(SelfCd, slow.self_cd), (Prompt, slow.prompt)])
def test_selfcd_and_prompt_have_their_message_in_the_users_turn_as_the_authors_do(method, formula):
    model, chosen = model_of("qwen2-untied"), method(template="chat", place="user")
    found = answers(model, chosen, "chat")
    template = resolve_template(byte_bpe(), "chat")
    told = [template.encode(byte_bpe(), f"{chosen.system}\n\n{text}") for text in TEXTS]
    require_formula(found, model, model, (prompts("chat"), told), lambda: formula)
    assert not torch.equal(found[1], answers(model, method(template="chat"), "chat")[1])


def test_a_raw_prompt_has_the_message_behind_its_bos():
    rows = SystemMessage.of(metaspace(), "system", "raw").put_into([[1, 9, 9]])
    assert rows[0][0] == 1 and rows[0][-2:] == [9, 9] and len(rows[0]) > 3
    assert "system" in metaspace().decode(rows[0])


def test_settings_come_back_from_disk(tmp_path, draft):
    saved = Ssd(draft=draft, threshold=0.5).fit(model_of("gpt2"), byte_bpe(), None)
    found = load(save(saved, tmp_path))
    assert (found.draft, found.threshold) == (draft, 0.5)


def test_a_draft_on_the_hub_keeps_its_name(monkeypatch):
    monkeypatch.setattr("ntkprobe.mitigations.ssd.load_draft", lambda *_: None)
    named = Ssd(draft="Qwen/Qwen2.5-0.5B").fit(model_of("gpt2"), byte_bpe(), None)
    assert named.draft == "Qwen/Qwen2.5-0.5B"


def test_refusals_under_prompt_are_those_of_prompts_with_the_message():
    model = build("qwen2-untied", vocab_size=WORDS, max_position_embeddings=256)
    phrases = [byte_bpe().encode(text) for text in ("I cannot", "No, ", "No.")]
    expected = score_phrases(model, prompts("chat", Prompt.system), phrases)
    with applied(Prompt(), model, byte_bpe()) as processors:
        found = score_phrases(model, prompts("chat"), phrases, logits_processor=processors)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, score_phrases(model, prompts("chat"), phrases), atol=1e-2)


def use(method, model=None, tokenizer=None, ids=None, **settings):
    chosen, tokenizer = model or model_of("gpt2"), tokenizer or byte_bpe()
    ids = torch.tensor([prompts("chat")[0] if ids is None else ids])
    with applied(method, chosen, tokenizer) as processors:
        settings = dict(max_new_tokens=3, do_sample=False) | settings
        chosen.generate(ids, logits_processor=processors, **settings)


BAD_SETTINGS = [
    (lambda: Adacd(steps=-1), "steps=-1: 0 or more"),
    (lambda: Adacd(space="logits"), "choose logit or probability"),
    (lambda: Adacd(alpha=math.nan), "alpha=nan"),
    (lambda: Adacd(agreement=2), "agreement=2: choose from 0 to 1"),
    (lambda: Adacd(plausibility=-1), "plausibility=-1"),
    (lambda: Adacd(system=" "), "empty system message: give one, or steps=0"),
    (lambda: SelfCd(place="assistant"), "place is 'assistant': choose from"),
    (lambda: SelfCd(system=""), "empty system message: give one, or ratio=1"),
    (lambda: SafeDecoding(common=0), "common=0: 1 or more"),
    (lambda: SafeDecoding(steps=-2), "steps=-2"),
    (lambda: Ssd(window=0), "window=0: 1 or more"),
    (lambda: Ssd(threshold=1.5), "threshold=1.5: choose from 0 to 1"),
    (lambda: use(Adacd(), num_beams=2), "cannot follow beam search.*num_beams=1"),
    (lambda: use(Adacd(template="raw"), tokenizer=metaspace(), ids=[5, 6]), "does not begin as"),
    (lambda: use(Adacd(template="llama-3")), "set the mitigation's template to the prompts' own"),
    (lambda: use(SafeDecoding()), "set expert to a LoRA adapter's folder"),
    (lambda: use(SafeDecoding(expert="nowhere")), "no LoRA adapter in nowhere"),
    (lambda: use(Ssd()), "set draft to the folder of a small model"),
    (lambda: use(Ssd(draft="./nowhere")), "nowhere"),
    (lambda: use(SelfCd(), max_new_tokens=200), "exceed the model's context of 256"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD_SETTINGS)
def test_bad_input_gets_one_line(wrong, message):
    with pytest.raises(UserError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_an_expert_of_another_model_is_refused(experts):
    with pytest.raises(UserError, match="expert gpt2 fits another model"):
        use(SafeDecoding(expert=str(experts / "gpt2")), model_of("qwen2-untied"))


def test_a_draft_with_another_vocabulary_is_refused(tmp_path):
    build("llama", vocab_size=WORDS).save_pretrained(tmp_path)
    metaspace().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has another vocabulary"):
        use(Ssd(draft=str(tmp_path)))


def test_a_processor_begun_for_another_batch_is_refused():
    with (
        applied(Adacd(), model_of("gpt2"), byte_bpe()) as processors,
        pytest.raises(UserError, match="call it before each sequence"),
    ):
        processors[0].begin(torch.ones(2, 9, dtype=torch.long))
        processors[0](torch.tensor([prompts("chat")[0]]), torch.randn(1, WORDS))
