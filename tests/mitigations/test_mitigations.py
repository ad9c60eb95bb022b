"""Laws of the mitigation interface, with the smallest methods there can be."""

import math

import pytest
import torch
from architectures import build, ragged_prompts
from small_mitigations import Push, Shift, Tilt
from toy_tokenizers import byte_bpe
from transformers import LogitsProcessor

from ntkprobe import mitigations, plugins
from ntkprobe.errors import UserError
from ntkprobe.mitigations import applied, digest, load, save, storage
from ntkprobe.mitigations.base import checked_settings, identity
from ntkprobe.mitigations.scans import Scans
from ntkprobe.mitigations.ssd import Ssd
from ntkprobe.mitigations.surgical import Surgical
from ntkprobe.models.generation import generate_answers
from ntkprobe.refusal import score_phrases

PROMPT = ragged_prompts()[2][None]


@pytest.fixture
def registry(monkeypatch):
    classes = {"push": Push, "tilt": Tilt}
    monkeypatch.setattr(plugins, "load", lambda package, name: classes[name])
    for name, each in classes.items():
        monkeypatch.setattr(each, "__module__", f"ntkprobe.mitigations.{name}")


def logits(model):
    with torch.no_grad():
        return model(PROMPT).logits


def test_steering_lasts_as_long_as_the_context():
    model = build("llama")
    before = logits(model)
    with applied(Push(), model, byte_bpe()) as processors:
        assert not processors and not torch.allclose(logits(model), before)
    assert torch.equal(logits(model), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_decoding_gives_a_processor():
    with applied(Tilt(2.0), build("llama"), byte_bpe()) as processors:
        assert processors(PROMPT, torch.zeros(1, 4)).tolist() == [[0, 2, 4, 6]]


def test_a_method_comes_back_as_it_was_saved(registry, tmp_path):
    model = build("llama")
    saved = Push(weight=0.5).fit(model, byte_bpe(), None)
    found = load(save(saved, tmp_path), model)
    assert (found.weight, found.fitted_on) == (0.5, identity(model))
    assert torch.equal(found.vector, saved.vector)
    assert load(save(Tilt(3), tmp_path / "other")).by == 3


def test_a_vector_of_another_model_is_refused(registry, tmp_path):
    folder = save(Push().fit(build("llama"), byte_bpe(), None), tmp_path)
    with pytest.raises(UserError, match=r"another model.*'llama' there, 'gpt2' here"):
        load(folder, build("gpt2"))
    with (
        pytest.raises(UserError, match="another model"),
        applied(load(folder), build("gpt2"), None),
    ):
        pass


def test_a_call_that_is_stopped_leaves_no_method_of_two(registry, tmp_path, monkeypatch):
    folder = save(Push().fit(build("llama"), byte_bpe(), None), tmp_path)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_json", stopped)
    with pytest.raises(KeyboardInterrupt):
        save(Push(weight=2.0).fit(build("llama"), byte_bpe(), None), folder)
    with pytest.raises(UserError, match="holds no mitigation"):
        load(folder)


def test_a_method_without_tensors_leaves_none_of_an_earlier_one(registry, tmp_path):
    folder = save(Push().fit(build("llama"), byte_bpe(), None), tmp_path / "old")
    save(Tilt(3), folder)
    assert [path.name for path in folder.iterdir()] == ["mitigation.json"]
    assert digest(folder) == digest(save(Tilt(3), tmp_path / "new"))


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, None, True])
@pytest.mark.parametrize(
    ("kind", "name"), [(Scans, "weight"), (Scans, "template"), (Ssd, "common")]
)
def test_a_setting_of_another_type_is_refused(kind, name, value):
    with pytest.raises(UserError, match=f"{name} is .*: give (float|str|int)"):
        checked_settings(kind, {name: value})


def test_several_values_may_be_lists_or_joined_by_commas():
    for given in ("I, No", ["I", "No"], ("I", "No")):
        assert checked_settings(Surgical, {"refusal_words": given})["refusal_words"] == ("I", "No")
    assert checked_settings(Scans, {"layers": [0, "0.5"]})["layers"] == (0.0, 0.5)


@pytest.mark.parametrize(
    ("kind", "name"), [(Scans, "weight"), (Scans, "threshold"), (Surgical, "coefficient")]
)
def test_nan_is_no_setting(kind, name):
    with pytest.raises(UserError, match=f"{name}=nan: give a number"):
        kind(**{name: math.nan})


def test_names_are_the_files_of_the_folder():
    assert "surgical" in mitigations.names() and not any(n[0] == "_" for n in mitigations.names())


PROMPTS = ragged_prompts((5, 3, 9))
PHRASES = [(3, 4, 5), (3, 4), (), (7,), (3, 9, 1, 2)]


class _Backwards(LogitsProcessor):
    """Adds what depends on how far a sequence has come; a generation of another one begins anew."""

    def begin(self, attention_mask):
        self.prompt = attention_mask.shape[1]

    def __call__(self, input_ids, scores):
        steps = input_ids.shape[1] - self.prompt
        weights = torch.linspace(0, 1 + steps, scores.shape[-1])
        return (scores + weights * input_ids[:, -1:]).masked_fill(weights > 2.9, -torch.inf)


def by_hand(model, prompt, phrase):
    """log P of a phrase under `_Backwards`, from its definition, a pass for each token."""
    total, text = 0.0, prompt.tolist()
    for step, token in enumerate(phrase):
        with torch.no_grad():
            scores = model(torch.tensor([text])).logits[0, -1]
        weights = torch.linspace(0, 1 + step, len(scores))
        scores = (scores + weights * text[-1]).masked_fill(weights > 2.9, -torch.inf)
        total += float(scores.double().log_softmax(-1)[token])
        text.append(token)
    return total


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_refusal_is_teacher_forced_through_the_processors(name, batch_size):
    model = build(name)
    found = score_phrases(
        model, PROMPTS, PHRASES, logits_processor=[_Backwards()], batch_size=batch_size
    )
    expected = [[by_hand(model, p, ids) if ids else -torch.inf for ids in PHRASES] for p in PROMPTS]
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-5, rtol=0)
    assert (found[:, 0] - score_phrases(model, PROMPTS, PHRASES)[:, 0]).abs().min() > 0.01


def test_a_ruled_out_phrase_has_no_probability():
    found = score_phrases(
        build("llama"), PROMPTS, [(1, 47, 1, 47), (1,)], logits_processor=[_Backwards()]
    )
    assert found[:, 0].isneginf().all() and found[:, 1].isfinite().all()


def test_answers_go_through_the_processors_whatever_the_batch():
    model, tokenizer = build("gpt2", vocab_size=len(byte_bpe())), byte_bpe()
    plain, one, two = (
        generate_answers(
            model, tokenizer, PROMPTS, max_new_tokens=5, batch_size=size, logits_processor=change
        )
        for size, change in [(3, ()), (1, [Shift(0.1)]), (3, [Shift(0.1)])]
    )
    assert one == two != plain
