"""A template, experts and a draft model, saved once for all tests of mitigations."""

import pytest
from architectures import build, with_lora
from decoding_runs import FAMILIES, WORDS, context
from toy_tokenizers import byte_bpe

GEMMA = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture(scope="session")
def gemma(tmp_path_factory):
    path = tmp_path_factory.mktemp("templates") / "gemma.jinja"
    path.write_text(GEMMA)
    return str(path)


@pytest.fixture(scope="session")
def experts(tmp_path_factory):
    """Return a folder with a LoRA adapter for each family."""
    place = tmp_path_factory.mktemp("experts")
    for name in FAMILIES:
        fresh = build(name, vocab_size=WORDS, **context(name))
        with_lora(fresh, r=3, use_rslora=name == "gpt2").save_pretrained(place / name)
    return place


@pytest.fixture(scope="session")
def draft(tmp_path_factory):
    """Return the folder of a small model with the same tokenizer and fewer unused words."""
    place = tmp_path_factory.mktemp("draft")
    words = len(byte_bpe())
    build("llama", seed=5, vocab_size=words, max_position_embeddings=256).save_pretrained(place)
    byte_bpe().save_pretrained(place)
    return str(place)
