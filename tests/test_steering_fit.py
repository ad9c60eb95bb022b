"""Laws of what the steering methods learn, and from what."""

from dataclasses import replace

import pytest
import torch
from steered_models import (
    BOTH,
    ENDING,
    PROMPTS,
    SURGICAL,
    TEMPLATE,
    THREE,
    ablated,
    chatting,
    encoded,
    every_prompt,
    fitted,
    plain,
    streams,
)
from toy_tokenizers import byte_bpe, metaspace, word_level

from ntkprobe.chat import RAW, resolve_template
from ntkprobe.errors import UserError
from ntkprobe.mitigations import applied, load, save
from ntkprobe.mitigations._positions import instruction_end
from ntkprobe.mitigations.scans import Scans
from ntkprobe.prompts import PromptSet


@THREE
def test_scans_learns_the_directions_of_its_definition(name):
    model, mitigation = fitted(name, "scans")
    sure = torch.tensor(TEMPLATE.encode_phrases(byte_bpe(), ["Sure"])[0])
    state = {
        group: [streams(model, torch.cat([ids, sure]))[1] for ids in encoded(group)]
        for group in ("toxic", "normal")
    }
    at = -1 - len(sure)
    end = {group: torch.stack([s[:, at] for s in found]).mean(0) for group, found in state.items()}
    v = end["toxic"] - end["normal"]
    r = end["toxic"] - torch.stack([s[:, -1] for s in state["toxic"]]).mean(0)
    unit = v / v.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(mitigation.vectors.double(), unit, atol=1e-5, rtol=0)
    torch.testing.assert_close(mitigation.transitions.double(), r, atol=1e-5, rtol=0)


def scores(logits, words=("I", "No")):
    """log p_R − log(1 − p_R) of the next token."""
    tokens = [TEMPLATE.encode_phrases(byte_bpe(), [word])[0][0] for word in words]
    p = logits[-1].double().softmax(-1)[tokens].sum()
    return float(p.log() - (1 - p).log())


@THREE
def test_surgical_chooses_as_its_definition_does(name):
    model, mitigation = fitted(name, "surgical")
    kept = {g: list(map(torch.tensor, rows)) for g, rows in halves(mitigation).items()}
    train = {g: [ids for ids in encoded(g) if not any(map(ids.equal, kept[g]))] for g in kept}
    mean = {
        g: torch.stack([streams(model, i)[0][:, -len(ENDING) :] for i in ids]).mean(0)
        for g, ids in train.items()
    }
    tried = []
    for layer in range(3):
        for position in range(len(ENDING)):
            normal, pseudo, toxic = (mean[g][layer, position] for g in PROMPTS.groups)
            r, w = toxic - normal, pseudo - normal
            if r.norm() < 1e-4:  # before the first block all prompts end alike
                continue
            rest = w - (w @ r) / (r @ r + 1e-8) * r
            unit = (rest / rest.norm()).float()
            with ablated(name, model, unit, 1.0):
                away = sum(scores(plain(model, ids)) for ids in kept["seemingly_toxic"])
            pushed = ablated(name, model, unit, 0.0, r.float(), 1.0, layer + 1)
            with pushed:
                towards = sum(scores(plain(model, ids)) for ids in kept["normal"])
            tried.append((away, towards, unit, r.float(), layer + 1))
    best = min(tried, key=lambda t: t[0])
    strongest = max(tried, key=lambda t: t[1])
    torch.testing.assert_close(mitigation.false_refusal, best[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(mitigation.true_refusal, strongest[3], atol=1e-5, rtol=0)
    assert mitigation.block == strongest[4]


def halves(how):
    """Return the token ids of the prompts that Surgical chooses its vectors by."""
    from ntkprobe.mitigations._surgical_fit import _split

    return {
        g: [i.tolist() for i in ids]
        for g, ids in _split(how, byte_bpe(), TEMPLATE, PROMPTS)[1].items()
    }


def test_an_instruction_ends_where_its_template_says():
    assert instruction_end(byte_bpe(), TEMPLATE) == ENDING
    inst = instruction_end(metaspace(), resolve_template(metaspace()))
    assert metaspace().decode(inst).split() == ["[/INST]"]
    with pytest.raises(UserError, match="'raw' puts nothing behind an instruction"):
        instruction_end(word_level(), RAW)


@BOTH
def test_a_method_is_the_same_after_save_and_load(method, tmp_path):
    model, mitigation = fitted("gpt2", method)
    with applied(mitigation, model, byte_bpe()):
        expected = plain(model, every_prompt()[0])
    with applied(load(save(mitigation, tmp_path), model), model, byte_bpe()):
        assert torch.equal(plain(model, every_prompt()[0]), expected)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda: Scans(layers=(0.8, 0.9)), r"layers 0.8…0.9 holds none of the model's 4 blocks"),
        (lambda: Scans(layers=(0.6, 0.2)), r"layers is \(0.6, 0.2\): give two shares"),
        (lambda: Scans(affirmation="Sure", template="raw"), "'raw' puts nothing behind"),
        (lambda: replace(SURGICAL, refusal_words=()), "no refusal begins with one of"),
        (lambda: replace(SURGICAL, kl_ablation=0.0), "raise kl_ablation"),
        (lambda: replace(SURGICAL, filtered=True), "the model (answers|refuses) none of"),
        (lambda: replace(SURGICAL, depth=0.0), "depth is 0.0"),
    ],
)
def test_bad_settings_are_one_line(method, message):
    with pytest.raises(UserError, match=message):
        method().fit(chatting("gpt2"), byte_bpe(), PROMPTS)


@BOTH
def test_a_fit_set_without_harmful_prompts_is_refused(method):
    model, mitigation = fitted("gpt2", method)
    harmless = PROMPTS.in_group("normal", "seemingly_toxic")
    with pytest.raises(UserError, match="no prompts in group 'toxic'"):
        mitigation.fit(model, byte_bpe(), harmless)
    with pytest.raises(UserError, match=r"no prompts in group|one prompt in group"):
        mitigation.fit(model, byte_bpe(), PromptSet.from_texts({"toxic": ["Scare my rival."]}))


@BOTH
def test_groups_that_do_not_differ_are_refused(method):
    model, mitigation = fitted("gpt2", method)
    same = PromptSet.from_texts({group: ["Name a colour.", "Sing."] for group in PROMPTS.groups})
    with pytest.raises(UserError, match="do not differ"):
        mitigation.fit(model, byte_bpe(), same)
