"""Scores of AdaCD, SelfCD, Prompt, SafeDecoding and SSD are those of their papers' formulas."""

import math
from functools import partial

import pytest
import slow_decoding as slow
import torch
from architectures import build, with_lora
from decoding_runs import (
    FAMILIES,
    TEXTS,
    WORDS,
    answers,
    context,
    model_of,
    prompts,
    require_formula,
)
from peft import PeftModel
from toy_tokenizers import byte_bpe

from ntkprobe.mitigations.adacd import Adacd
from ntkprobe.mitigations.prompt import Prompt
from ntkprobe.mitigations.safe_decoding import SafeDecoding
from ntkprobe.mitigations.self_cd import SelfCd
from ntkprobe.mitigations.ssd import Ssd
from ntkprobe.mitigations.token_candidates import either_candidates, shared_candidates
from ntkprobe.prompts.templates import resolve_template


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
    fresh = build(name, torch.float64, vocab_size=WORDS, **context(name))
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


def test_sampling_draws_from_the_formulas_distribution(gemma):
    model, method = model_of("gemma2"), SelfCd(template=gemma)
    torch.manual_seed(0)
    settings = dict(do_sample=True, top_k=0, temperature=1.0)
    found = answers(model, method, gemma, **settings)
    starts = prompts(gemma), prompts(gemma, method.system)
    require_formula(found, model, model, starts, lambda: slow.self_cd)
    assert found[0] != answers(model, method, gemma)[0]


def test_a_model_with_an_adapter_is_contrasted_with_itself(experts):
    name = "qwen2-untied"
    base = build(name, torch.float64, vocab_size=WORDS, **context(name))
    model = with_lora(base)
    starts = prompts("chat"), prompts("chat", Adacd.system)
    found = answers(model, Adacd(), "chat")
    require_formula(found, model, model, starts, lambda: slow.adacd, steps=10)
    with model.disable_adapter():
        assert found[0] != answers(model, Adacd(), "chat")[0]


def test_the_expert_stands_in_for_the_models_own_adapter(experts):
    name = "qwen2-untied"
    model = with_lora(build(name, torch.float64, vocab_size=WORDS, **context(name)))
    fresh = build(name, torch.float64, vocab_size=WORDS, **context(name))
    expert = PeftModel.from_pretrained(fresh, str(experts / name)).eval()
    found = answers(model, SafeDecoding(expert=str(experts / name), steps=3), "chat")
    starts = [prompts("chat")] * 2
    require_formula(found, model, expert, starts, lambda: slow.safe_decoding, steps=3)


@pytest.mark.parametrize(("method", "formula"), [(SelfCd, slow.self_cd), (Prompt, slow.prompt)])
def test_selfcd_and_prompt_have_their_message_in_the_users_turn_as_the_authors_do(method, formula):
    model, chosen = model_of("qwen2-untied"), method(template="chat", place="user")
    found = answers(model, chosen, "chat")
    template = resolve_template(byte_bpe(), "chat")
    told = [template.encode(byte_bpe(), f"{chosen.system}\n\n{text}") for text in TEXTS]
    require_formula(found, model, model, (prompts("chat"), told), lambda: formula)
    assert not torch.equal(found[1], answers(model, method(template="chat"), "chat")[1])
