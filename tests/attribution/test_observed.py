"""What is read of the explained prompts."""

import pytest
import torch
import training_world as world

from ntkprobe.attribution import AttributionSettings
from ntkprobe.attribution.observed import observe
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
