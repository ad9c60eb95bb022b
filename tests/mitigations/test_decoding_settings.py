"""Settings of the decoding methods: on disk, told apart, and refused."""

import math
import shutil

import pytest
import torch
from architectures import build
from decoding_runs import FAMILIES, WORDS, model_of, prompts
from safetensors.torch import load_file, save_file
from toy_tokenizers import byte_bpe, metaspace

from ntkprobe.errors import UserError
from ntkprobe.mitigations import applied, load, save
from ntkprobe.mitigations.adacd import Adacd
from ntkprobe.mitigations.safe_decoding import SafeDecoding
from ntkprobe.mitigations.self_cd import SelfCd
from ntkprobe.mitigations.ssd import Ssd
from ntkprobe.mitigations.storage import digest


def test_another_expert_in_the_same_folder_is_another_method(experts, tmp_path):
    expert = shutil.copytree(experts / next(iter(FAMILIES)), tmp_path / "expert")
    place = save(SafeDecoding(expert=str(expert)), tmp_path / "method")
    before = digest(place)
    assert digest(place) == before and before.startswith("safe_decoding#")
    weights = load_file(expert / "adapter_model.safetensors")
    changed = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(changed, expert / "adapter_model.safetensors", {"format": "pt"})
    assert digest(place) != before


def test_settings_come_back_from_disk(tmp_path, draft):
    saved = Ssd(draft=draft, threshold=0.5).fit(model_of("gpt2"), byte_bpe(), None)
    found = load(save(saved, tmp_path))
    assert (found.draft, found.threshold) == (draft, 0.5)


def test_a_draft_on_the_hub_keeps_its_name(monkeypatch):
    monkeypatch.setattr("ntkprobe.mitigations.ssd.load_draft", lambda *_: None)
    named = Ssd(draft="Qwen/Qwen2.5-0.5B").fit(model_of("gpt2"), byte_bpe(), None)
    assert named.draft == "Qwen/Qwen2.5-0.5B"


# Mistakes


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
