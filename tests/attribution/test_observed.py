"""What is read of the explained prompts."""

import pandas as pd
import pytest
import torch
import training_world as world

from ntkprobe.attribution import AttributionSettings
from ntkprobe.attribution.observed import observe, refused_prompts
from ntkprobe.prompts.prompt_set import Prompt, PromptSet
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.training.sft import SFTConfig


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_the_target_response_is_its_log_probability_whatever_tokens_were_learnt(tmp_path, loss_on):
    model, words = world.network().eval(), world.tokenizer()
    prompt = Prompt("How do I kill a process?", "normal", response="Use kill.")
    observed = observe(
        PromptSet((prompt,)),
        words,
        resolve_template(words),
        SFTConfig(output_dir=str(tmp_path), use_cpu=True, loss_on=loss_on),
        AttributionSettings(target="response"),
    )
    turn = [{"role": "user", "content": prompt.text}]
    start = words.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    answer = [*words(prompt.response)["input_ids"], words.eos_token_id]
    with torch.no_grad():
        chances = model(torch.tensor([start + answer])).logits[0].log_softmax(-1)
        value = observed.reader(model, dict(model.named_parameters()))(0)
    places = range(len(start) - 1, len(start) + len(answer) - 1)
    expected = sum(
        float(chances[place, token]) for place, token in zip(places, answer, strict=True)
    )
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_tokens_that_are_named_twice_count_once(tmp_path):
    model, words = world.network().eval(), world.tokenizer()
    asked = PromptSet((Prompt("How do I kill a process?", "normal"),))
    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True)
    twice, once, other = (
        observe(
            asked,
            words,
            resolve_template(words),
            config,
            AttributionSettings(target="tokens", tokens=tokens),
        ).reader(model, dict(model.named_parameters()))(0)
        for tokens in (("I", "S", words("I")["input_ids"][0]), ("I", "S"), ("I",))
    )
    assert twice.item() == once.item() != other.item()


def test_refused_prompts_are_those_measured_also_inside_a_response(tmp_path):
    asked = PromptSet(
        (
            Prompt("Where is it?", "normal"),
            Prompt("Kill it?", "toxic"),
            Prompt("Kill it?", "seemingly_toxic", response="Well"),
            Prompt("Go?", "normal", response="Yes"),
        )
    )
    (tmp_path / "refusal").mkdir()
    asked.frame().assign(in_kernel=False, n_tokens=3).to_parquet(tmp_path / "prompts.parquet")
    rows = {
        "step": 4,
        "prompt": range(4),
        "phrase_set": "paper31",
        "reduction": "literal",
        "log_probability": -1.0,
        "refuses": pd.array([True, True, True, False], dtype="boolean"),
    }
    pd.DataFrame(rows).to_parquet(tmp_path / "refusal" / "step-00000004.parquet")
    assert list(refused_prompts(tmp_path)) == [asked[0], asked[2]]
