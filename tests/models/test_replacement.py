"""Replaced blocks, modules and attributes: in force inside the block, put back after it."""

from functools import partial

import pytest
import torch
from architectures import build, ragged_prompts
from torch import nn

from ntkprobe.kernel import last_logits
from ntkprobe.models.architecture import decoder_list
from ntkprobe.models.replacement import replace_attributes, replace_blocks, replace_module


def unchanged(block, *args, **kwargs):
    return block(*args, **kwargs)


def test_blocks_replaced_by_their_own_forward_change_nothing_and_by_another_do():
    model, prompts = build("llama"), ragged_prompts()
    blocks, plain = decoder_list(model), last_logits(model, prompts)
    originals = list(blocks)
    with replace_blocks(blocks, lambda index: partial(unchanged, originals[index])):
        assert torch.equal(last_logits(model, prompts), plain)
    with replace_blocks(blocks, lambda index: lambda hidden, *_, **__: hidden):
        assert not torch.allclose(last_logits(model, prompts), plain)


def test_a_replaced_block_has_the_blocks_attributes_and_registers_no_parameter():
    blocks = decoder_list(build("llama"))
    original = blocks[0]
    with replace_blocks(blocks, lambda index: unchanged):
        assert blocks[0] is not original and blocks[0].self_attn is original.self_attn
        assert not list(blocks[0].parameters()) and blocks[0].training == original.training
        with pytest.raises(AttributeError):
            _ = blocks[0].no_such_attribute


def test_the_originals_are_back_after_an_error():
    model = build("llama")
    blocks, head = decoder_list(model), model.lm_head
    originals = list(blocks)
    with pytest.raises(ZeroDivisionError):
        with replace_blocks(blocks, lambda index: unchanged):
            with replace_module(model, head, nn.Identity()):
                with replace_attributes(head, weight=nn.Parameter(torch.zeros(1))):
                    raise ZeroDivisionError
    assert list(blocks) == originals and model.lm_head is head and head.weight.numel() > 1


def test_a_module_is_replaced_wherever_the_model_holds_it():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(2, 2))})
    with replace_module(model, shared, nn.Identity()):
        assert isinstance(model["a"], nn.Identity) and isinstance(model["b"][0], nn.Identity)
        assert isinstance(model["b"][1], nn.Linear)
    assert model["a"] is shared and model["b"][0] is shared
