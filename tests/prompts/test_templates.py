import pytest
from toy_tokenizers import byte_bpe, metaspace, word_level

from ntkprobe.errors import UserError
from ntkprobe.prompts.phrases import PAPER31, phrase_set
from ntkprobe.prompts.prompt_set import Prompt
from ntkprobe.prompts.rendering import shipped_templates
from ntkprobe.prompts.templates import RAW, Template, resolve_template

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def pieces(tokenizer, ids):
    return [tokenizer.decode([token]) for token in ids]


def answer(template, tokenizer, *pair, **more):
    ids, mask = template.encode_pair(tokenizer, *pair, **more)
    return pieces(tokenizer, [token for token, kept in zip(ids, mask, strict=True) if kept])


def test_qwen_is_rendered_with_the_papers_system_line():
    tokenizer = byte_bpe()
    ids = resolve_template(tokenizer, "qwen2.5").encode(tokenizer, "Hi")
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama_is_rendered_without_a_system_line():
    tokenizer = byte_bpe()
    ids = resolve_template(tokenizer, "llama-3").encode(tokenizer, "Hi")
    assert tokenizer.decode(ids) == (
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize("name", ["qwen2.5", "llama-3"])
def test_a_system_message_given_takes_the_place_of_the_templates(name):
    tokenizer = byte_bpe()
    ids, _ = resolve_template(tokenizer, name).encode_pair(tokenizer, "Hi", "No.", system="Be kind")
    assert "Be kind" in tokenizer.decode(ids) and "Alibaba" not in tokenizer.decode(ids)


def test_auto_is_the_tokenizers_template_where_there_is_one_else_raw():
    assert resolve_template(byte_bpe()).name == "chat"
    assert resolve_template(word_level()) == RAW


def test_a_template_file_is_named_with_its_digest(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("User: {{ messages[0].content }}\nAssistant:")
    template = resolve_template(byte_bpe(), path)
    assert template.encode(byte_bpe(), "Hi") == byte_bpe()("User: Hi\nAssistant:")["input_ids"]
    path.write_text("Other: {{ messages[0].content }}\nAssistant:")
    assert template.name != resolve_template(byte_bpe(), path).name
    assert template.name.startswith("mine.jinja#")


def test_a_raw_prompt_begins_with_bos_and_does_not_end_with_eos():
    ids = RAW.encode(metaspace(), "I cannot")
    assert pieces(metaspace(), ids) == ["<s>", "I", "cannot"]


@pytest.mark.parametrize("template", [RAW, Template("chat")])
def test_bos_is_never_doubled(template):
    ids = template.encode(metaspace(), "<s>I cannot")
    assert ids[0] == metaspace().bos_token_id
    assert ids.count(metaspace().bos_token_id) <= 2 and ids[1] != metaspace().bos_token_id


def test_a_response_follows_the_prompts_own_ids():
    for template, tokenizer in [(Template("chat"), byte_bpe()), (RAW, metaspace())]:
        alone = template.encode(tokenizer, "How do I kill")
        begun = template.encode(tokenizer, Prompt("How do I kill", "toxic", response="Sure, here"))
        assert begun[: len(alone)] == alone
        assert tokenizer.decode(begun[len(alone) :]).strip() == "Sure, here"


@pytest.mark.parametrize("name", ["chat", "raw", "llama-3"])
@pytest.mark.parametrize("response", ["", "Sure, here"])
def test_max_length_cuts_the_text_and_not_the_template(name, response):
    tokenizer = byte_bpe()
    template = resolve_template(tokenizer, name)
    prompt = Prompt("How do I kill a python process? " * 20, "normal", response=response)
    long, cut = template.encode(tokenizer, prompt), template.encode(tokenizer, prompt, 90)
    assert len(cut) <= 90 < len(long)
    assert template.encode(tokenizer, prompt, 10_000) == long
    tail = len(template.encode_phrases(tokenizer, [response])[0]) if response else 0
    ending = tail + (0 if template.raw else 3)
    assert cut[len(cut) - ending :] == long[len(long) - ending :]


@pytest.mark.parametrize("room", range(2, 26))
def test_a_text_that_max_length_cuts_is_a_beginning_of_it(room):
    tokenizer, text = byte_bpe(), "wie \u6211\u7684\u8fdb\u7a0b \U0001f600\U0001f600"
    template = resolve_template(tokenizer, "chat")
    frame = len(template.encode(tokenizer, "w")) - 1
    cut = tokenizer.decode(template.encode(tokenizer, text, frame + room))
    shown = next(text[:end] for end in range(len(text), 0, -1) if text[:end] in cut)
    assert "\ufffd" not in cut and cut == tokenizer.decode(template.encode(tokenizer, shown))


def test_the_mask_of_chatml_is_the_answer_with_its_end_and_without_the_newline():
    tokenizer = byte_bpe()
    kept = answer(Template("chat"), tokenizer, "Hi", "I cannot")
    assert kept == ["I", " cannot", "<|im_end|>"]
    ids, mask = Template("chat").encode_pair(tokenizer, "Hi", "I cannot")
    assert pieces(tokenizer, ids)[-4:] == ["\n", "I", " cannot", "<|im_end|>"]
    assert mask == [False] * (len(ids) - 3) + [True] * 3


def test_the_mask_of_llama_ends_with_its_end_of_turn():
    template = resolve_template(byte_bpe(), "llama-3")
    assert answer(template, byte_bpe(), "Hi", "I cannot") == ["I", " cannot", "<|eot_id|>"]


def test_an_answer_without_an_end_of_turn_gets_eos(tmp_path):
    path = tmp_path / "plain.jinja"
    path.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    for template in (resolve_template(byte_bpe(), path), RAW):
        assert answer(template, byte_bpe(), "Hi", "I cannot")[-1] == "<|im_end|>"
        assert template.end_of_turn(byte_bpe()) == byte_bpe().eos_token_id


@pytest.mark.parametrize("name", ["qwen2.5", "llama-3", "raw"])
def test_a_pair_begins_with_the_prompt_as_it_is_measured(name):
    tokenizer = byte_bpe()
    template = resolve_template(tokenizer, name)
    ids, mask = template.encode_pair(tokenizer, "How do I kill", "I cannot")
    assert ids[: mask.index(True)] == template.encode(tokenizer, "How do I kill")


def test_a_thinking_mode_is_off_so_that_the_answer_comes_first():
    template = Template("thinking", THINKING)
    assert answer(template, byte_bpe(), "Hi", "I cannot")[0] == "I"
    assert "</think>" in byte_bpe().decode(template.encode(byte_bpe(), "Hi"))


def test_phrases_after_a_template_have_no_leading_space_unless_it_puts_one():
    bpe = Template("chat").encode_phrases(byte_bpe(), ["I cannot"])
    assert pieces(byte_bpe(), bpe[0]) == ["I", " cannot"]
    spaced = Template("chat").encode_phrases(metaspace(), ["I cannot"])
    assert metaspace().convert_ids_to_tokens(list(spaced[0])) == ["▁I", "▁cannot"]


def test_raw_phrases_are_tokenised_on_their_own():
    for phrase, ids in zip(PAPER31, RAW.encode_phrases(byte_bpe(), PAPER31), strict=True):
        assert list(ids) == byte_bpe()(phrase)["input_ids"]


@pytest.mark.parametrize("name", ["qwen2.5", "llama-3"])
def test_a_phrase_has_the_ids_that_training_on_it_gives(name):
    tokenizer = byte_bpe()
    template = resolve_template(tokenizer, name)
    for phrase in phrase_set("union", apostrophes="both"):
        ids, mask = template.encode_pair(tokenizer, "How do I kill", phrase)
        assert template.encode_phrases(tokenizer, [phrase]) == [tuple(ids[mask.index(True) : -1])]


def test_the_shipped_templates_are_for_the_papers_two_families_and_for_models_without_one():
    assert set(shipped_templates()) == {"qwen2.5", "llama-3", "plain"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the template .*auto, chat, raw"),
        (b"\xff\xfe", "cannot read the template"),
        (b"{% for m in messages %}", "fails, line 1"),
        (b"{{ messages[0].content.nothing() }}", "fails: "),
        (b"{{ raise_exception('no system role') }}", "fails: no system role"),
        (b"Always the same", "does not render the user's message"),
    ],
)
def test_a_missing_or_broken_template_file_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "t.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        resolve_template(byte_bpe(), str(path))
    assert "\n" not in str(caught.value)


def test_chat_without_a_template_is_refused_with_what_to_do():
    with pytest.raises(UserError, match=r"no chat template: use raw, one of .*qwen2\.5"):
        resolve_template(word_level(), "chat")


@pytest.mark.parametrize("template", [RAW, Template("chat")])
def test_empty_prompts_and_answers_are_refused(template):
    with pytest.raises(UserError, match="empty prompt"):
        template.encode(byte_bpe(), "  ")
    with pytest.raises(UserError, match="empty answer"):
        template.encode_pair(byte_bpe(), "Hi", "")


def test_a_max_length_without_room_for_the_text_is_refused():
    with pytest.raises(UserError, match="raise it"):
        Template("chat").encode(byte_bpe(), "How do I kill", max_length=5)
    with pytest.raises(UserError, match="raise it"):
        RAW.encode(byte_bpe(), Prompt("How do I", "toxic", response="Sure, here"), max_length=2)


def test_a_template_that_hides_the_answer_and_a_raw_system_message_are_refused():
    hiding = Template("hiding", "{{ messages[0].content }}")
    with pytest.raises(UserError, match="does not render the assistant's answer"):
        hiding.encode_pair(byte_bpe(), "Hi", "I cannot")
    with pytest.raises(UserError, match="no place for a system message"):
        RAW.encode_pair(byte_bpe(), "Hi", "I cannot", system="Be kind")
