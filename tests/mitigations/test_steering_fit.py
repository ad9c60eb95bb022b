"""Laws of what the steering methods learn, and from what."""

import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from steered_models import (
    BOTH,
    ENDING,
    FAMILIES,
    PROMPTS,
    SCANS,
    SURGICAL,
    TEMPLATE,
    THREE,
    ablated,
    chatting,
    encoded,
    every_prompt,
    fitted,
    hidden_states,
    plain,
    rewritten,
    streams,
)
from toy_tokenizers import byte_bpe, metaspace, word_level

from ntkprobe.errors import UserError
from ntkprobe.mitigations import applied, load, save
from ntkprobe.mitigations.activations import instruction_end
from ntkprobe.mitigations.scans import Scans
from ntkprobe.mitigations.sequences import SequenceTracker
from ntkprobe.mitigations.surgical_fit import divergence
from ntkprobe.models.architecture import decoder_layers
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.prompts.templates import RAW, resolve_template


@THREE
def test_scans_learns_the_directions_of_its_definition(name):
    model, mitigation = fitted(name, "scans")
    sure = torch.tensor(TEMPLATE.encode_phrases(byte_bpe(), ["Sure"])[0])
    texts = {g: [torch.cat([ids, sure]) for ids in encoded(g)] for g in ("toxic", "normal")}
    at = -1 - len(sure)
    end = {
        g: torch.stack([streams(model, ids)[1][:, at] for ids in texts[g]]).mean(0) for g in texts
    }
    v = end["toxic"] - end["normal"]
    harmful = [hidden_states(model, ids) for ids in texts["toxic"]]
    r = torch.stack([s[:, at] - s[:, -1] for s in harmful]).mean(0)
    unit = v / v.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(mitigation.vectors.double(), unit, atol=1e-5, rtol=0)
    torch.testing.assert_close(mitigation.transitions.double(), r, atol=1e-5, rtol=0)
    leaving = [streams(model, ids)[1] for ids in texts["toxic"]]
    plain_r = torch.stack([s[:, at] - s[:, -1] for s in leaving]).mean(0)
    assert (plain_r - r)[:-1].abs().max() < 1e-5 < 1e-2 < (plain_r - r)[-1].abs().max()
    without = replace(mitigation, final_norm=False).fit(model, byte_bpe(), PROMPTS)
    torch.testing.assert_close(without.transitions.double(), plain_r, atol=1e-5, rtol=0)
    assert torch.equal(without.vectors, mitigation.vectors)


def test_scans_scores_with_the_last_state_after_the_norm_which_changes_the_scores():
    model, mitigation = fitted("qwen2-tied", "scans")
    sure = torch.tensor(TEMPLATE.encode_phrases(byte_bpe(), ["Sure"])[0])
    moved = [hidden_states(model, torch.cat([ids, sure])) for ids in every_prompt()]
    ways = torch.stack([s[:, -1 - len(sure)] - s[:, -1] for s in moved])
    cosines = torch.cosine_similarity(ways, mitigation.transitions.double(), dim=-1)
    expected = cosines[:, 1:].mean(-1)
    found = mitigation.likeness(model, every_prompt())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    other = replace(mitigation, final_norm=False).fit(model, byte_bpe(), PROMPTS)
    assert (other.likeness(model, every_prompt()) - expected).abs().max() > 1e-4


def test_scans_that_was_fitted_before_the_norm_counted_is_used_as_it_was(tmp_path):
    model, _ = fitted("gpt2", "scans")
    plain = replace(SCANS, final_norm=False).fit(model, byte_bpe(), PROMPTS)
    about = json.loads((save(plain, tmp_path) / "mitigation.json").read_text())
    del about["settings"]["final_norm"], about["learned"]["normed"]
    (tmp_path / "mitigation.json").write_text(json.dumps(about))
    found = load(tmp_path, model).likeness(model, every_prompt())
    assert torch.equal(found, plain.likeness(model, every_prompt()))


def test_scans_judges_a_chat_at_its_last_instruction():
    model, mitigation = fitted("gpt2", "scans")
    turn = encoded("toxic")[0]
    chat = torch.cat([turn, torch.tensor([70, 71]), encoded("normal")[0]])
    judged = []

    def judge(prompts):
        judged.extend(prompt.tolist() for prompt in prompts)
        return torch.ones(len(prompts)) > 0

    sequences = SequenceTracker(mitigation.ending, judge)
    sequences.see(model, (chat[None],), {})
    assert sequences.signs.tolist() == [[0.0] * (len(chat) - 1) + [1.0]]
    assert judged == [chat.tolist()]
    push = torch.zeros(len(chat) + 1, 1)
    push[len(chat) - 1 :] = 0.8 if bool(mitigation.harmful(model, [chat])) else -0.8
    blocks = decoder_layers(model)
    changes = [
        (blocks[at], None, lambda h, at=at: h + push * mitigation.vectors[at]) for at in (1, 2)
    ]
    text = torch.cat([chat, torch.tensor([72])])
    with rewritten(changes):
        expected = plain(model, text)
    with applied(mitigation, model, byte_bpe()):
        found = plain(model, text)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.equal(found[: len(turn)], plain(model, text)[: len(turn)])  # not the first turn's


def scores(logits, words=("I", "No")):
    """log p_R − log(1 − p_R) of the next token."""
    tokens = [TEMPLATE.encode_phrases(byte_bpe(), [word])[0][0] for word in words]
    p = logits[-1].double().softmax(-1)[tokens].sum()
    return float(p.log() - (1 - p).log())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {"addition": 0.3}) for name in FAMILIES),
        ("gpt2", {"addition": 0.3, "scored_at": 1.0}),
        ("gpt2", {"addition": 0.0}),
    ],
)
def test_surgical_chooses_as_its_definition_does(name, settings):
    model = fitted(name, "surgical")[0]
    mitigation = replace(SURGICAL, **settings).fit(model, byte_bpe(), PROMPTS)
    weight = {0.3: settings.get("scored_at", 0.3), 0.0: 1.0}[settings["addition"]]
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
            pushed = ablated(name, model, unit, 0.0, r.float(), weight, layer + 1)
            with pushed:
                towards = sum(scores(plain(model, ids)) for ids in kept["normal"])
            tried.append((away, towards, unit, r.float(), layer + 1))
    best = min(tried, key=lambda t: t[0])
    strongest = max(tried, key=lambda t: t[1])
    torch.testing.assert_close(mitigation.false_refusal, best[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(mitigation.true_refusal, strongest[3], atol=1e-5, rtol=0)
    assert mitigation.block == strongest[4]
    assert mitigation.report["true_refusal"]["coefficient"] == weight


def chosen_places(model, **settings):
    found = replace(SURGICAL, **settings).fit(model, byte_bpe(), PROMPTS).report["true_refusal"]
    return found["block"], found["position"]


def test_the_best_place_of_a_true_refusal_depends_on_how_often_it_is_added():
    places = {a: chosen_places(fitted("gpt2", "surgical")[0], addition=a) for a in (0.1, 1.0, 8.0)}
    assert len(set(places.values())) > 1
    as_before = chosen_places(fitted("gpt2", "surgical")[0], addition=0.1, scored_at=8.0)
    assert as_before == places[8.0]


def test_another_coefficient_than_the_one_chosen_at_is_told():
    model, mitigation = fitted("gpt2", "surgical")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mitigation.hooks(model)
        replace(mitigation, addition=0.0).hooks(model)
    with pytest.warns(UserWarning, match="added 0.5 times, .* chosen at 0.3"):
        replace(mitigation, addition=0.5).hooks(model)


def test_the_divergence_has_the_authors_epsilon_in_both_logarithms():
    p, q = torch.tensor([0.7, 0.3 - 1e-12, 1e-12]).double(), torch.tensor([1 - 2e-9, 1e-9, 1e-9])
    q = q.double()
    by_hand = {
        e: sum(
            float(a) * (math.log(float(a) + e) - math.log(float(b) + e))
            for a, b in zip(p, q, strict=True)
        )
        for e in (0.0, 1e-6)
    }
    for epsilon, expected in by_hand.items():
        found = divergence(p.log()[None], q.log()[None], epsilon)
        assert found == pytest.approx(expected, rel=1e-9)
    assert by_hand[1e-6] < by_hand[0.0] - 1  # the exact one is stricter


def test_the_limit_is_on_the_authors_divergence_or_on_the_exact_one():
    model = fitted("gpt2", "surgical")[0]
    made = {e: replace(SURGICAL, kl_epsilon=e).fit(model, byte_bpe(), PROMPTS) for e in (0.0, 1e-2)}
    kls = [m.report["false_refusal"]["kl"] for m in made.values()]
    assert kls[1] < kls[0]


def halves(how):
    """Return the token ids of the prompts that Surgical chooses its vectors by."""
    from ntkprobe.mitigations.surgical_fit import split_prompts

    return {
        g: [i.tolist() for i in ids]
        for g, ids in split_prompts(how, byte_bpe(), TEMPLATE, PROMPTS)[1].items()
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
