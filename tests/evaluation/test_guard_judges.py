"""Guard models as judges, through small stand-ins: the guards themselves cannot be had here.

A stand-in is a real checkpoint without attention to anything but the last token: it says what its
table of successors has.
"""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ntkprobe.errors import UserError
from ntkprobe.evaluation import Item
from ntkprobe.evaluation.judges.llama_guard import LlamaGuard, parsed
from ntkprobe.evaluation.judges.wildguard import Wildguard, parsed_answer
from ntkprobe.evaluation.judges.wildguard_harm import WildguardHarm

LAST_TURN = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
LINES = "Harmful request: no\nResponse refusal: {}\nHarmful response: {}"


def stand_in(folder, successors, template=LAST_TURN, context=256, special=()):
    words = [
        "<unk>",
        "<eos>",
        *successors,
        *(w for w in successors.values() if w not in successors),
    ]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.add_special_tokens(list(special))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")
    made.chat_template = template
    size = len(words) + len(words) % 2
    shape = dict(vocab_size=size, hidden_size=size, num_attention_heads=1, num_hidden_layers=1)
    config = Qwen2Config(
        **shape,
        num_key_value_heads=1,
        intermediate_size=4,
        max_position_embeddings=context,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for part in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            part.weight.zero_()
        model.get_input_embeddings().weight.copy_(torch.eye(size))
        head = model.lm_head.weight.zero_()
        for word in words:
            head[words.index(successors.get(word, "<eos>")), words.index(word)] = 1
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return dict(model=str(folder), dtype="float32", device="cpu")


def items(*answers):
    return [Item(str(n), "May I ask ?", answer) for n, answer in enumerate(answers)]


def test_llama_guard_judges_the_answer_and_what_it_garbles_is_undetermined(tmp_path):
    guard = LlamaGuard(**stand_in(tmp_path, {"fine": "safe", "bad": "unsafe\nS1,S14", "odd": "hm"}))
    guard.check()
    verdicts = guard.judge(items("it is fine", "it is bad", "so odd", "", "fine it is bad"))
    assert [v.verdict for v in verdicts] == ["safe", "unsafe", *["undetermined"] * 2, "unsafe"]
    assert [v.detail for v in verdicts[1:4]] == ["unsafe\nS1,S14", "hm", "empty answer"]


def test_verdicts_of_a_guard_do_not_depend_on_the_batch(tmp_path):
    made = stand_in(tmp_path, {"fine": "safe", "bad": "unsafe\nS1"})
    asked = items("fine", "oh so very bad", "quite fine", "bad")
    assert LlamaGuard(**made, batch_size=1).judge(asked) == LlamaGuard(**made).judge(asked)


def test_an_answer_too_long_for_the_guard_is_undetermined_and_the_others_are_judged(tmp_path):
    guard = LlamaGuard(**stand_in(tmp_path, {"fine": "safe"}, context=64))
    long, short = guard.judge(items("fine " * 60, "fine"))
    assert (long.verdict, long.detail) == ("undetermined", "too long for the guard")
    assert short.verdict == "safe"


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("safe", "safe"),
        ("\n\nsafe\n", "safe"),
        ("unsafe\nS2", "unsafe"),
        ("unsafe\nS1, S10", "unsafe"),
        ("unsafe", "unsafe"),
        ("Safe.", None),
        ("safe\nS1", None),
        ("unsafe\nbecause", None),
        ("I cannot say whether this is safe", None),
        ("", None),
    ],
)
def test_llama_guards_format_is_read_strictly(reply, verdict):
    assert parsed(reply) == verdict


def test_a_guard_without_a_chat_template_is_one_clear_line(tmp_path):
    guard = LlamaGuard(**stand_in(tmp_path, {"fine": "safe"}, template=None))
    with pytest.raises(UserError, match="has no chat template"):
        guard.check()


LISTED = (
    "{% for m in messages %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] }} {% endfor %}{% endfor %}"
)


def test_a_guard_whose_template_takes_lists_is_given_them(tmp_path):
    guard = LlamaGuard(**stand_in(tmp_path, {"fine": "safe", "bad": "unsafe"}, template=LISTED))
    guard.check()
    assert [v.verdict for v in guard.judge(items("it is fine", "it is bad"))] == ["safe", "unsafe"]
    assert "it is fine" in guard._text(items("it is fine")[0])


@pytest.mark.parametrize(
    "template",
    [
        "Is the last answer safe?",
        "{% for m in messages %}{{ m['text'] }} {% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ m['content'] }} {% endfor %}",
        "{{ messages[-1]['content'] }} {{ messages[-1]['content'] }}",
    ],
)
def test_a_guard_that_is_not_shown_the_conversation_is_one_clear_line(tmp_path, template):
    guard = LlamaGuard(**stand_in(tmp_path, {"fine": "safe"}, template=template))
    with pytest.raises(UserError, match="does not render the conversation") as caught:
        guard.check()
    assert "\n" not in str(caught.value)


def test_a_guard_judges_what_follows_the_reasoning_and_what_it_never_gets_to_is_undetermined(
    tmp_path,
):
    guard = LlamaGuard(**stand_in(tmp_path, {"fine": "safe", "bad": "unsafe"}))
    verdicts = guard.judge(items("<think> bad </think> fine", "<think> so fine"))
    assert [v.verdict for v in verdicts] == ["safe", "undetermined"]
    assert "never ends" in verdicts[1].detail


@pytest.mark.parametrize(
    ("first", "last", "verdict"),
    [
        ("[THINK]", "[/THINK]", "unsafe"),
        ("<think>", "</think>", "unsafe"),
        ("<|channel|>", "<|channel|>final<|message|>", "unsafe"),
        # The controls: any other special token ends a reply, reasoning that never ends is none.
        ("<|eot|>", "[/THINK]", "undetermined"),
        ("[THINK]", "safe", "undetermined"),
    ],
)
def test_a_guards_reply_goes_on_behind_the_marks_of_its_reasoning(first, last, verdict, tmp_path):
    said = {"bad": first, first: "hm", "hm": last, last: "unsafe"}
    marks = [word for word in (first, last) if word != "safe"]
    guard = LlamaGuard(**stand_in(tmp_path, said, special=marks))
    (found,) = guard.judge(items("bad"))
    assert found.verdict == verdict
    assert ("hm" in found.detail) == (first != "<|eot|>")


@pytest.mark.parametrize(
    ("refusal", "harm", "verdicts"),
    [
        ("yes", "no", ("refusal", "safe")),
        ("no", "yes", ("compliance", "unsafe")),
        ("maybe", "no", ("undetermined", "safe")),
    ],
)
def test_wildguards_two_judges_read_their_own_line(tmp_path, refusal, harm, verdicts):
    made = stand_in(tmp_path, {"<|assistant|>": LINES.format(refusal, harm)})
    asked = items("any answer")
    for judge, verdict in zip((Wildguard(**made), WildguardHarm(**made)), verdicts, strict=True):
        judge.check()
        assert [v.verdict for v in judge.judge(asked)] == [verdict]


def test_a_reply_that_says_both_says_nothing():
    assert parsed_answer("Response refusal: yes\nResponse refusal: no", "Response refusal") is None
    assert parsed_answer("Response refusal: yes", "Response refusal") == "yes"


def test_a_guard_that_is_not_there_is_one_clear_line():
    with pytest.raises(UserError, match="no tokenizer in allenai/wildguard on the Hugging Face"):
        Wildguard().check()
