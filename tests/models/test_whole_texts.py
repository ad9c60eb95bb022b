"""Passes over whole texts, or token by token, for the models that need them."""

import pytest
import torch
from architectures import build, perturbed, with_lora
from every_family import tiny
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import BertConfig, BertLMHeadModel, XLNetConfig

from ntkprobe.errors import UserError
from ntkprobe.models.batching import context_length
from ntkprobe.models.cached import usable
from ntkprobe.models.whole_texts import looks_ahead, mixes_continuations
from ntkprobe.refusal import score_phrases
from ntkprobe.refusal.probability import obeys_masks

PROMPTS = [torch.tensor(ids) for ids in ([3, 4, 7, 8, 30, 9], [22, 9], [3, 4, 23, 9, 11, 25, 7, 8])]
PHRASES = [(5, 6, 7), (5, 6), (9,), (8, 3, 11, 40)]
SMALL = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}


@torch.no_grad()
def by_definition(model, prompts=PROMPTS):
    """log P of each phrase, with a pass for every token over what stands before it."""

    def of_token(ids, token):
        return model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token]

    return torch.stack(
        [
            torch.stack(
                [sum(of_token([*p.tolist(), *y[:t]], y[t]) for t in range(len(y))) for y in PHRASES]
            )
            for p in prompts
        ]
    )


def bert(**settings):
    torch.manual_seed(0)
    sizes = {**SMALL, "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": None}
    return perturbed(BertLMHeadModel(BertConfig(**sizes, **settings))).eval()


@pytest.mark.parametrize("family", ["jamba", "qwen3_next", "minimax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_pass_holds_several_continuations_where_a_state_runs_along_the_text(family, dtype):
    model = tiny(family).to(dtype)
    assert mixes_continuations(model) == "a state runs along the text"
    assert not obeys_masks(model, PROMPTS[:2], PHRASES) and not usable(model, PROMPTS, 4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_oss"])
def test_plain_attention_mixes_nothing_and_does_not_look_ahead(name):
    model = build(name)
    assert mixes_continuations(model) == "" and obeys_masks(model, PROMPTS[:2], PHRASES)
    assert not looks_ahead(model, PROMPTS[0], 3)


def test_an_activated_lora_is_run_on_whole_texts_also_after_another_adapter():
    model = with_lora(build("llama", max_position_embeddings=64), targets=["q_proj", "v_proj"])
    activated = {"r": 2, "lora_alpha": 64, "target_modules": ["q_proj", "v_proj"]}
    config = LoraConfig(**activated, task_type="CAUSAL_LM", alora_invocation_tokens=[7, 8])
    model.add_adapter("activated", config)
    factors = [p for n, p in model.named_parameters() if "lora_" in n and ".activated." in n]
    perturbed(torch.nn.ParameterList(factors), seed=2)
    assert usable(model.eval(), PROMPTS, 4)
    model.set_adapter("activated")
    model.eval()
    assert "invocation" in mixes_continuations(model) and not usable(model, PROMPTS, 4)
    assert torch.allclose(score_phrases(model, PROMPTS, PHRASES), by_definition(model), atol=1e-5)


def test_a_trained_prompt_in_front_of_the_text_is_refused_and_a_prefix_is_not():
    for config in (PromptTuningConfig, PrefixTuningConfig):
        given = config(task_type="CAUSAL_LM", num_virtual_tokens=4)
        model = get_peft_model(build("llama", max_position_embeddings=64), given).eval()
        if config is PromptTuningConfig:
            with pytest.raises(UserError, match="PROMPT_TUNING adapters put trained positions"):
                score_phrases(model, PROMPTS, PHRASES)
        else:
            found = score_phrases(model, PROMPTS, PHRASES)
            assert torch.allclose(found, by_definition(model), atol=1e-5)


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["ragged", "one"])
def test_a_model_that_looks_ahead_is_asked_for_each_token_by_itself(prompts):
    model = bert(is_decoder=False)
    assert looks_ahead(model, prompts[0], 3) and not looks_ahead(
        bert(is_decoder=True), prompts[0], 3
    )
    found = score_phrases(model, prompts, PHRASES)
    assert torch.allclose(found, by_definition(model, prompts), atol=1e-5)


def test_a_context_that_is_not_positive_is_no_limit():
    assert context_length(XLNetConfig()) is None
