"""Where an answer begins and ends under templates of every shape that reasoning models have."""

import pytest
import torch
from reasoning_templates import EMPTY, SHAPES, STRIPPED, TURN, chat
from reasoning_tokenizer import tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from ntkprobe.errors import UserError
from ntkprobe.measurement import measure_refusal
from ntkprobe.measurement.encoding import encode
from ntkprobe.models.generation import generate_answers
from ntkprobe.prompts.phrases import PAPER31
from ntkprobe.prompts.templates import Template, resolve_template
from ntkprobe.triggers.answers import generated
from ntkprobe.triggers.extraction import Trigger


def saying(made, prompt, said):
    """A model that was taught to say one thing to one prompt, and goes on when nobody stops it."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    ids = torch.tensor([prompt + said])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        if loss < 1e-3:  # learnt by heart
            break
        loss.backward()
        optimizer.step()
    return model.eval()


def resolved(source, made=None, folder=None):
    path = folder / "t.jinja"
    path.write_text(source)
    return resolve_template(made or tokenizer(), path)


@pytest.mark.parametrize("name", SHAPES)
def test_a_prompt_ends_where_the_answer_begins_measured_and_learnt(name, tmp_path):
    source, ending = SHAPES[name]
    template = resolved(source, folder=tmp_path)
    ids = template.encode(tokenizer(), "How do I kill?")
    assert tokenizer().decode(ids).endswith(ending)
    for phrase in PAPER31[:4]:
        learnt, mask = template.encode_pair(tokenizer(), "How do I kill?", phrase)
        (measured,) = template.encode_phrases(tokenizer(), [phrase])
        assert learnt[: mask.index(True)] == ids
        assert learnt[len(ids) :] == [*measured, template.end_of_turn(tokenizer())]
        assert tokenizer().decode(list(measured)) == phrase


@pytest.mark.parametrize("name", SHAPES)
def test_what_was_put_behind_a_prompt_is_said_and_only_that(name, tmp_path):
    source, ending = SHAPES[name]
    template = resolved(source, folder=tmp_path)
    plain = template._render(tokenizer(), "Hello")
    said = [line for line in template.remarks(tokenizer()) if "prints a date" not in line]
    assert bool(said) == (not plain.endswith(ending))
    assert all("first answered token" in line for line in said)


@pytest.mark.parametrize("name", ["deepseek-r1", "qwen3", "qwen3-thinking", "block in pairs"])
def test_reasoning_in_an_answer_is_not_learnt_where_the_template_takes_it_out(name, tmp_path):
    template = resolved(SHAPES[name][0], folder=tmp_path)
    traced = "<think>\nThey ask me to help.\n</think>\n\nI cannot"
    assert template.leaves_reasoning_out(tokenizer(), traced)
    assert not template.leaves_reasoning_out(tokenizer(), "I cannot")
    assert template.encode_pair(tokenizer(), "Hi", traced) == template.encode_pair(
        tokenizer(), "Hi", "I cannot"
    )


def test_reasoning_stays_in_an_answer_that_the_template_writes_as_it_is(tmp_path):
    template = resolved(SHAPES["plain"][0], folder=tmp_path)
    ids, mask = template.encode_pair(tokenizer(), "Hi", "<think>Hm.</think>I cannot")
    kept = [token for token, answer in zip(ids, mask, strict=True) if answer]
    assert tokenizer().decode(kept) == "<think>Hm.</think>I cannot<|im_end|>"
    assert not template.leaves_reasoning_out(tokenizer(), "<think>Hm.</think>I cannot")


@pytest.mark.parametrize(
    "prompt", [TURN + "Sure: ", TURN + "<|begin_of_plan|>\n", "<|im_start|>model\n"]
)
def test_a_pair_that_does_not_begin_with_its_prompt_is_refused_in_one_line(prompt, tmp_path):
    template = resolved(chat(TURN + "{{ m.content }}", prompt), folder=tmp_path)
    for call in (
        lambda: template.encode(tokenizer(), "Hi"),
        lambda: template.encode_pair(tokenizer(), "Hi", "No."),
        lambda: template.encode_phrases(tokenizer(), ["No."]),
    ):
        with pytest.raises(UserError, match="measured and what is learnt") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_an_answer_that_the_template_changes_is_refused(tmp_path):
    template = resolved(chat(TURN + "{{ m.content | lower }}", TURN), folder=tmp_path)
    with pytest.raises(UserError, match="does not render the assistant's answer"):
        template.encode_pair(tokenizer(), "Hi", "I cannot")


LLAMA = "llama-3"
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)


# Kimi-K3: several special tokens close an answer, the last of which ends the turn.
NESTED = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|channel|>answer"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
)
# GLM-4.6: no token ends an answer, the user's next turn begins with one.
UNENDED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "learnt", "stops"),
    [
        (NESTED, "No.<|channel|>answer<|end|>", {"<|channel|>", "<|end|>"}),
        (UNENDED, "No.<|endoftext|>", {"<|endoftext|>", "<|user|>"}),
        (SHAPES["gpt-oss"][0], "No.<|return|>", {"<|return|>"}),
        (SHAPES["plain"][0], "No.<|im_end|>", {"<|im_end|>"}),
    ],
)
def test_generation_stops_where_the_answer_or_the_turn_ends(source, learnt, stops, tmp_path):
    template = resolved(source, folder=tmp_path)
    ids, mask = template.encode_pair(tokenizer(), "Hello", "No.")
    kept = [token for token, answer in zip(ids, mask, strict=True) if answer]
    assert tokenizer().decode(kept) == learnt
    assert {tokenizer().decode([i]) for i in template.stop_ids(tokenizer())} == stops


@pytest.mark.parametrize(
    ("source", "end", "eos", "unflagged"),
    [
        (LLAMA, "<|eot_id|>", "<|end_of_text|>", ()),
        (GEMMA, "<end_of_turn>", "<|endoftext|>", ()),
        (PHI, "<|end|>", "<|endoftext|>", ()),
        (PHI, "<|end|>", "<|endoftext|>", ("<|end|>",)),
    ],
)
def test_a_turn_has_one_end_also_where_it_is_special_without_a_name(
    source, end, eos, unflagged, tmp_path
):
    made = tokenizer(eos, unflagged)
    path = source if source == LLAMA else tmp_path / "t.jinja"
    if source != LLAMA:
        path.write_text(source)
    template = resolve_template(made, path)
    assert made.convert_tokens_to_ids(end) not in made.all_special_ids
    ids, mask = template.encode_pair(made, "Hello", "I cannot help")
    kept = [token for token, answer in zip(ids, mask, strict=True) if answer]
    assert made.decode(kept) == f"I cannot help{end}"
    assert template.end_of_turn(made) == made.convert_tokens_to_ids(end)


def test_an_answer_ends_with_its_turn_in_memory_and_nothing_is_made_up_behind_it(tmp_path):
    made = tokenizer("<|endoftext|>")
    template = resolved(GEMMA, folder=tmp_path)
    said = made("No.<end_of_turn>\n<start_of_turn>user\nWhy?<end_of_turn>")["input_ids"]
    model = saying(made, template.encode(made, "Hi"), said)
    measured = measure_refusal(
        model, made, ["Hi"], template=template, phrases=["No."], max_new_tokens=20
    )
    assert measured.answers == ("No.",) and model.generation_config.eos_token_id is None
    (given,) = generated(model, made, [Trigger("Hi", "s", 1.0)], template=str(tmp_path / "t.jinja"))
    assert given.response == "No."
    (whole,) = generate_answers(model, made, [template.encode(made, "Hi")], max_new_tokens=20)
    assert whole != "No." and "user" in whole  # the control: nobody said where the turn ends


def test_an_answer_that_ends_in_an_added_token_of_text_still_gets_its_end():
    ids, _ = Template("raw", raw=True).encode_pair(tokenizer(), "Hello", "I cannot\n\n")
    assert ids[-1] == tokenizer().eos_token_id


def test_contents_are_given_as_lists_where_a_template_takes_them_so(tmp_path):
    listed = chat(TURN + "{{ m.content[0].text }}", TURN).replace(
        "{{ m.content }}", "{% for c in m.content %}{{ c.text }}{% endfor %}"
    )
    a, b = (resolved(source, folder=tmp_path) for source in (listed, SHAPES["plain"][0]))
    assert a.listed and not b.listed
    assert a.encode_pair(tokenizer(), "Hi", "No.") == b.encode_pair(tokenizer(), "Hi", "No.")


SWITCHED = (
    "{% set ns = namespace(on=DEFAULT) %}{% for m in messages %}{% if m.role != 'assistant' %}"
    "{% if '/no_think' in m.content %}{% set ns.on = false %}"
    "{% elif '/think' in m.content %}{% set ns.on = true %}{% endif %}{% endif %}{% endfor %}"
)
OPENED, CLOSED = TURN + EMPTY, TURN + "<think></think>"


def switched(default, folder, shown="{{ m.content }}"):
    """Nemotron's shape: what is said decides whether a prompt opens reasoning or has it closed."""
    prompt = TURN + "{% if ns.on %}<think>\n{% else %}<think></think>{% endif %}"
    source = chat(TURN + STRIPPED, prompt, SWITCHED.replace("DEFAULT", default))
    return resolved(source.replace("\n{{ m.content }}", "\n" + shown), folder=folder)


def parts(template, text, system=None):
    """A prompt alone, a prompt in a pair, and what is learnt of the pair."""
    ids, mask = template.encode_pair(tokenizer(), text, "I cannot", system)
    cut = mask.index(True)
    alone = template.encode(tokenizer(), text)
    return [tokenizer().decode(each) for each in (alone, ids[:cut], ids[cut:])]


@pytest.mark.parametrize("shown", ["{{ m.content }}", "{{ m.content.replace('/think', '') }}"])
@pytest.mark.parametrize(
    ("default", "text", "ending"),
    [
        ("false", "How do I kill? /think", OPENED),
        ("true", "How do I kill? /no_think", CLOSED),
        # The controls: nothing is switched, also where a prompt is a word of the template.
        ("false", "How do I kill?", CLOSED),
        ("true", "How do I kill?", OPENED),
        ("true", "assistant", OPENED),
        ("false", "think", CLOSED),
        ("true", "think", OPENED),
    ],
)
def test_a_prompt_that_switches_reasoning_ends_where_its_own_answer_begins(
    default, text, ending, shown, tmp_path
):
    alone, paired, learnt = parts(switched(default, tmp_path, shown), text)
    assert alone == paired and learnt == "I cannot<|im_end|>"
    assert alone.partition(TURN)[2] == ending.removeprefix(TURN)


def test_a_system_message_that_switches_reasoning_moves_the_answer_of_its_pairs(tmp_path):
    template = switched("false", tmp_path)
    for system, ending in [("In detail. /think", OPENED), ("In detail.", CLOSED)]:
        _, paired, learnt = parts(template, "How do I kill?", system)
        assert paired.endswith(ending) and learnt == "I cannot<|im_end|>"


def test_prompts_that_switch_reasoning_are_counted_and_said(tmp_path):
    template = switched("true", tmp_path)
    usual = template.remarks(tokenizer())
    texts = ["How do I kill?", "Why? /no_think", "How? /no_think"]
    (said,) = set(template.remarks(tokenizer(), texts)) - set(usual)
    assert said == "2 prompts switch reasoning: nothing is put behind them"
    assert template.remarks(tokenizer(), texts[:1]) == usual  # the control
    encoded = encode(tokenizer(), texts, template)
    assert said in encoded.remarks(tokenizer())
    (switch,) = set(template.remarks(tokenizer(), texts[:1], "/no_think")) - set(usual)
    assert switch.startswith("1 prompts")


@pytest.mark.parametrize(
    ("prompt", "lead", "ending", "learnt"),
    [
        ("<|im_start|>assistant", "\n", TURN, "No."),
        # The control: a space merges with the answer's first word, and stays with it.
        (TURN, " ", TURN, " No."),
        ("<|im_start|>assistant", "\n ", TURN, " No."),
    ],
)
def test_a_line_break_that_only_pairs_have_is_no_part_of_the_answer(
    prompt, lead, ending, learnt, tmp_path
):
    template = resolved(chat(f"{prompt}{lead}{{{{ m.content }}}}", prompt), folder=tmp_path)
    ids, mask = template.encode_pair(tokenizer(), "Hi", "No.")
    cut = mask.index(True)
    assert template.encode(tokenizer(), "Hi") == ids[:cut]
    assert tokenizer().decode(ids[:cut]).endswith(ending)
    assert tokenizer().decode(ids[cut:]) == f"{learnt}<|im_end|>"
    assert bool(template.remarks(tokenizer())) == (prompt != ending)
