"""The plain frame of models without a chat template, and where an answer in it ends."""

import pytest
from tiny_runs import tiny_tokenizer

from ntkprobe.checkpoints import load_tokenizer
from ntkprobe.models.answers import answer_of, written
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.tiny import model_path


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(model_path())


@pytest.fixture(scope="module")
def plain(tokenizer):
    return resolve_template(tokenizer, "plain")


def test_a_prompt_is_framed_and_the_first_word_of_an_answer_has_its_space(tokenizer, plain):
    ids = plain.encode(tokenizer, "Why?")
    assert tokenizer.decode(ids) == "User: Why?\nAssistant:"
    phrases = plain.encode_phrases(tokenizer, ["I cannot"])
    assert tokenizer.decode(phrases[0]) == " I cannot"


def test_bos_stands_first_where_the_tokenizer_puts_it_and_nowhere_else(plain):
    ours = tiny_tokenizer()
    ours.add_special_tokens({"bos_token": "<s>"})
    assert ours.bos_token_id not in resolve_template(ours, "plain").encode(ours, "how do i")
    from tokenizers.processors import TemplateProcessing

    ours.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ours.bos_token_id)]
    )
    ids = resolve_template(ours, "plain").encode(ours, "how do i")
    assert ids[0] == ours.bos_token_id and ours.bos_token_id not in ids[1:]


def test_an_answer_ends_where_the_next_turn_is_invented(tokenizer, plain):
    assert plain.stop_texts(tokenizer) == ("\nUser:",)
    ids = tokenizer(" I cannot help.\nUser: Why?\nAssistant: No", add_special_tokens=False)
    found = answer_of(tokenizer, ids["input_ids"], [], plain.stop_texts(tokenizer))
    assert found.text == " I cannot help." and found.ended
    alone = tokenizer(" I cannot help.", add_special_tokens=False)["input_ids"]
    assert found.n_tokens == len(alone)
    assert not answer_of(tokenizer, alone, [], plain.stop_texts(tokenizer)).ended


def test_a_user_within_a_line_ends_nothing(tokenizer, plain):
    ids = tokenizer(" The User: field.\nThe user is here.", add_special_tokens=False)["input_ids"]
    texts = plain.stop_texts(tokenizer)
    assert answer_of(tokenizer, ids, [], texts).n_tokens == len(ids)
    assert not written(tokenizer, texts)(ids)


def test_a_stop_token_before_the_text_ends_the_answer_first(tokenizer, plain):
    ids = tokenizer(" Yes.\nUser: Why?", add_special_tokens=False)["input_ids"]
    found = answer_of(tokenizer, ids, [ids[1]], plain.stop_texts(tokenizer))
    assert found.n_tokens == 1 and found.ended


def test_a_template_with_an_end_of_turn_token_has_no_such_text(tokenizer, plain):
    chat = resolve_template(tokenizer, "chat")
    assert chat.stop_texts(tokenizer) == ()
    assert resolve_template(tokenizer, "raw").stop_texts(tokenizer) == ()
    assert any("no token that ends a turn" in line for line in plain.remarks(tokenizer))
    assert not any("ends a turn" in line for line in chat.remarks(tokenizer))


def test_a_frame_in_a_file_ends_answers_likewise(tokenizer, tmp_path):
    file = tmp_path / "frame.jinja"
    file.write_text(
        "{% for m in messages %}{{ '\\n\\nHuman: ' if m.role == 'user' else '\\n\\nBot: ' }}"
        "{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nBot:' }}{% endif %}"
    )
    assert resolve_template(tokenizer, file).stop_texts(tokenizer) == ("\n\nHuman:",)
