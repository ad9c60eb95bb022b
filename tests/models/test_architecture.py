"""Laws of where things sit in a model."""

import pytest
import torch
from architectures import ARCHITECTURES, build, ragged_prompts, with_lora

from ntkprobe.errors import UserError
from ntkprobe.kernel import last_logits
from ntkprobe.models.architecture import (
    capture,
    decoder_layers,
    embedding,
    experts_one_by_one,
    head,
    hidden_state,
    hooked,
    layer_output,
)
from ntkprobe.models.precision import Float64Throughout

PROMPT = ragged_prompts()[2][None]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_are_the_blocks_outputs_counted_from_one(name):
    model = build(name)
    with torch.no_grad(), capture(model, 1) as first, capture(model, 2) as second:
        states = model(PROMPT, output_hidden_states=True).hidden_states
    assert len(decoder_layers(model)) == 2 and len(first) == len(second) == 1
    torch.testing.assert_close(first[0], states[1])
    if "opt" not in name:  # which projects and norms before it shows the last
        assert not torch.allclose(second[0], states[2])


def test_layers_are_found_under_an_adapter():
    model = build("llama")
    blocks = decoder_layers(model)
    assert decoder_layers(with_lora(model)) == blocks


@pytest.mark.parametrize("layer", [0, 3])
def test_a_layer_out_of_range_is_refused(layer):
    with pytest.raises(UserError, match="choose from 1 to 2"):
        layer_output(build("llama"), layer)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UserError, match="no list of"):
        decoder_layers(torch.nn.Linear(2, 2))


def test_the_ends_are_the_embedding_and_the_output_matrix():
    model = build("qwen2-tied")
    assert embedding(model) is model.model.embed_tokens and head(model) is model.lm_head
    assert head(torch.nn.Linear(2, 2)) is None is embedding(torch.nn.Linear(2, 2))


def test_a_hidden_state_is_found_in_a_tuple():
    state = torch.ones(1, 2, 3)
    assert hidden_state((state, None)) is state is hidden_state(state)


def test_hooks_apply_inside_the_block_only():
    model = build("llama")
    with torch.no_grad():
        before = model(PROMPT).logits
        with hooked([(layer_output(model, 1), lambda module, inputs, output: 2 * output)]):
            inside = model(PROMPT).logits
        after = model(PROMPT).logits
    assert torch.equal(before, after) and not torch.allclose(before, inside)


def test_hooks_are_taken_off_after_an_error():
    model = build("llama")
    with pytest.raises(RuntimeError), hooked([(layer_output(model, 1), lambda *_: None)]):
        raise RuntimeError
    assert not layer_output(model, 1)._forward_hooks


def test_float64_is_float64_throughout():
    model = build("qwen2-tied", torch.float64)
    with torch.no_grad():
        mended = model.double()
        with Float64Throughout():
            exact = last_logits(mended, [PROMPT[0]])
            again = last_logits(mended, [PROMPT[0], PROMPT[0][:3]])[:1]
        plain = last_logits(mended, [PROMPT[0]])
    assert (exact - again).abs().max() < 1e-13
    assert (exact - plain).abs().max() > 1e-9


def test_experts_run_one_by_one_inside_the_block_only():
    model = build("mixtral")
    model.set_experts_implementation("grouped_mm")
    with experts_one_by_one(model):
        assert model.config._experts_implementation == "eager"
    assert model.config._experts_implementation == "grouped_mm"
