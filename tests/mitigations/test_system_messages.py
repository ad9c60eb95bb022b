"""Where the system message of a decoding method goes in a prompt's tokens."""

import pytest
import torch
from decoding_runs import TEXTS, under
from toy_tokenizers import byte_bpe, metaspace

from ntkprobe.mitigations.system_messages import SystemMessage, real_rows
from ntkprobe.prompts.templates import resolve_template


@pytest.mark.parametrize("spec", ["chat", "llama-3", "raw", "gemma"])
def test_the_message_goes_where_the_template_has_it(spec, gemma):
    known = resolve_template(byte_bpe(), gemma if spec == "gemma" else spec)
    message = SystemMessage.of(byte_bpe(), "Be kind!", gemma if spec == "gemma" else spec)
    for text in (*TEXTS, " and\nmore\n"):
        if spec in ("chat", "llama-3"):
            expected = under(known, text, "Be kind!")
        else:
            expected = known.encode(byte_bpe(), f"Be kind!\n\n{text}")
        assert message.put_into([known.encode(byte_bpe(), text)]) == [expected]


@pytest.mark.parametrize("spec", ["chat", "llama-3", "raw", "gemma"])
def test_the_message_begins_the_users_turn_where_it_is_asked_to(spec, gemma):
    name = gemma if spec == "gemma" else spec
    known = resolve_template(byte_bpe(), name)
    message = SystemMessage.of(byte_bpe(), "Be kind!", name, "user")
    for text in (*TEXTS, " and\nmore\n"):
        own = text.lstrip() if spec == "llama-3" else text  # which trims what the user says
        expected = known.encode(byte_bpe(), f"Be kind!\n\n{own}")
        assert message.put_into([known.encode(byte_bpe(), text)]) == [expected]


def test_a_raw_prompt_has_the_message_behind_its_bos():
    rows = SystemMessage.of(metaspace(), "system", "raw").put_into([[1, 9, 9]])
    assert rows[0][0] == 1 and rows[0][-2:] == [9, 9] and len(rows[0]) > 3
    assert "system" in metaspace().decode(rows[0])


def test_a_bos_that_is_the_padding_token_is_kept():
    padding = byte_bpe().pad_token_id
    ids = torch.tensor([[padding, padding, 7], [padding, 8, padding]])
    assert real_rows(byte_bpe(), ids) == [[padding, 7], [padding, 8, padding]]
