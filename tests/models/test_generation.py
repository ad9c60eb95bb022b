import copy
import math

import pytest
import torch
from architectures import build, ragged_prompts, with_lora
from toy_tokenizers import byte_bpe

from ntkprobe.errors import UserError
from ntkprobe.models.generation import generate_answers, left_padded, length_batches
from ntkprobe.prompts.special_tokens import readable

PROMPTS = ragged_prompts((5, 3, 9, 1, 14))
LETTERS = 300  # all letters of the byte-level tokenizer, so that every answer is readable


def reader(name, **changes):
    return build(name, vocab_size=LETTERS, **changes)


def greedy(model, prompt, steps, stops=()):
    """The definition: the whole text again for every token, no cache and no padding."""
    text = prompt.tolist()
    for _ in range(steps):
        token = int(model(torch.tensor([text])).logits[0, -1].argmax())
        if token in stops:
            break
        text = [*text, token]
    return byte_bpe().decode(text[len(prompt) :], skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize(
    "name", ["gpt2", "opt", "gpt_neox", "llama", "mistral", "gemma3", "mixtral", "gpt_oss"]
)
@torch.no_grad()
def test_answers_are_those_of_the_bare_greedy_loop_whatever_the_batch(name, batch_size):
    model = reader(name)
    stops = {byte_bpe().eos_token_id, model.generation_config.eos_token_id}
    found = generate_answers(model, byte_bpe(), PROMPTS, max_new_tokens=8, batch_size=batch_size)
    assert found == [greedy(model, prompt, 8, stops) for prompt in PROMPTS]
    assert len(set(found)) > 1


def test_a_checkpoints_own_settings_are_set_aside_and_put_back():
    model = reader("llama")
    plain = generate_answers(model, byte_bpe(), PROMPTS, max_new_tokens=12)
    own = model.generation_config
    own.update(do_sample=True, temperature=9.0, repetition_penalty=5.0, suppress_tokens=[20, 30])
    assert generate_answers(model, byte_bpe(), PROMPTS, max_new_tokens=12) == plain
    assert model.generation_config is own and own.do_sample


@pytest.mark.parametrize("inside", [False, True])
def test_padding_is_a_token_that_the_model_has(inside):
    model, tokenizer = reader("llama"), copy.deepcopy(byte_bpe())
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>" if inside else "[PAD]"})
    assert (tokenizer.pad_token_id < LETTERS) == inside  # `[PAD]` was added, the model not resized
    expected = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, stop_ids=[40, 41])
    handle = model.model.layers[0].register_forward_hook(lambda *_: None)  # so it is run plainly
    found = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, stop_ids=[40, 41])
    handle.remove()
    assert found == expected and len(set(found)) > 1


def test_an_adapter_answers():
    model = with_lora(reader("llama"))
    found = generate_answers(model, byte_bpe(), PROMPTS, max_new_tokens=8)
    with torch.no_grad():
        expected = [greedy(model, prompt, 8, {byte_bpe().eos_token_id}) for prompt in PROMPTS]
    assert found == expected
    with model.disable_adapter():
        assert generate_answers(model, byte_bpe(), PROMPTS, max_new_tokens=8) != found


def test_an_answer_ends_at_any_stop_token_of_the_call_the_model_or_the_tokenizer():
    model = reader("gpt2")
    with torch.no_grad():
        first = int(model(PROMPTS[0][None]).logits[0, -1].argmax())
    one = dict(input_ids=PROMPTS[:1], max_new_tokens=4)
    assert generate_answers(model, byte_bpe(), **one)[0]
    assert generate_answers(model, byte_bpe(), **one, stop_ids=[first]) == [""]
    model.generation_config.eos_token_id = [first, 5]
    assert generate_answers(model, byte_bpe(), **one) == [""]


class Bare:
    """As little of a tokenizer as generation needs: two ids, and how ids are decoded."""

    eos_token_id, pad_token_id = None, 0

    def decode(self, ids, skip_special_tokens=True):
        return byte_bpe().decode(ids, skip_special_tokens=skip_special_tokens)


def test_a_tokenizer_without_a_list_of_added_tokens_reads_answers_by_decoding_them():
    ids = byte_bpe()("No.")["input_ids"]
    end = byte_bpe().eos_token_id
    assert readable(Bare(), ids) == readable(byte_bpe(), [*ids, end]) == "No."
    model = reader("llama")
    found = generate_answers(model, Bare(), PROMPTS, max_new_tokens=4)
    with torch.no_grad():
        stops = {model.generation_config.eos_token_id}
        assert found == [greedy(model, prompt, 4, stops) for prompt in PROMPTS]
    with pytest.raises(AttributeError, match="decode"):  # the control: without decode there is none
        readable(object(), ids)


def test_the_tokenizers_padding_side_is_left_alone():
    for side in ("left", "right"):
        byte_bpe().padding_side = side
        answers = generate_answers(reader("gpt2"), byte_bpe(), PROMPTS, max_new_tokens=4)
        assert byte_bpe().padding_side == side and len(answers) == len(PROMPTS)


def test_batches_hold_every_row_once_with_the_longest_first():
    assert list(length_batches(PROMPTS, 2)) == [[4, 2], [0, 1], [3]]


def test_padding_is_on_the_left_and_masked():
    ids, mask = left_padded([[5, 6], [7]], padding=9)
    assert ids.tolist() == [[5, 6], [9, 7]] and mask.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([PROMPTS[0], []], "prompt 1 is empty"),
        ([[1] * 40], "prompt 0 has 40 tokens.*context of 32: shorten it"),
        ([], "no prompts"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompts, message):
    with pytest.raises(UserError, match=message):
        generate_answers(reader("gpt2"), byte_bpe(), prompts, max_new_tokens=8)


def test_nan_logits_and_training_mode_are_refused():
    model = reader("gpt2")
    with pytest.raises(UserError, match="training mode"):
        generate_answers(model.train(), byte_bpe(), PROMPTS, max_new_tokens=8)
    model.lm_head.weight.data[3] = math.nan
    with pytest.raises(UserError, match=r"prompts 0, 1, 2, 3, 4 have NaN"):
        generate_answers(model.eval(), byte_bpe(), PROMPTS, max_new_tokens=8)
