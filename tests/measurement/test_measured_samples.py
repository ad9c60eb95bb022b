"""A number that is none never passes the comparison of a measurement with its files."""

import pytest
import torch
from tiny_runs import tiny_model

from ntkprobe.checkpoints import LoadSettings
from ntkprobe.measurement.verification import (
    MeasuredSample,
    WrongMeasurement,
    compare_with_files,
)
from ntkprobe.models.parameters import ParameterSelection

PROMPTS = ((5, 6, 7), (5, 6, 8), (9, 10, 11, 12))
PHRASES = ((20, 21), (13,))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with a model, its logits after each prompt and log P of either phrase."""
    model, folder = tiny_model(), tmp_path_factory.mktemp("plain") / "model"
    model.save_pretrained(folder)

    @torch.no_grad()
    def log_softmax(ids):
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    with torch.no_grad():
        logits = torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in PROMPTS])
    each = [
        sum(log_softmax([*ids, *phrase])[len(ids) - 1 + i, t] for i, t in enumerate(phrase))
        for ids in PROMPTS
        for phrase in PHRASES
    ]
    return folder, logits.double(), torch.stack(each).view(len(PROMPTS), -1).logsumexp(1)


def sample(logits, refusal):
    every = ParameterSelection.parse("all")
    return MeasuredSample(
        PROMPTS, logits, refusal, refusal, PHRASES, None, None, every, (), 0, torch.float32
    )


def test_what_the_files_give_passes(measured):
    folder, logits, refusal = measured
    found = compare_with_files(sample(logits, refusal), folder, load=LoadSettings())
    assert found.errors["log P(refuse)"] < 1e-6


@pytest.mark.parametrize("prompt", range(len(PROMPTS)))
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -3.0])
def test_a_wrong_refusal_is_found_whichever_prompt_has_it(measured, prompt, wrong):
    folder, logits, refusal = measured
    changed = refusal.clone()
    changed[prompt] = wrong
    with pytest.raises(WrongMeasurement, match="log P"):
        compare_with_files(sample(logits, changed), folder, load=LoadSettings())


@pytest.mark.parametrize("prompt", range(len(PROMPTS)))
def test_a_logit_that_is_no_number_is_found_whichever_prompt_has_it(measured, prompt):
    folder, logits, refusal = measured
    changed = logits.clone()
    changed[prompt, 3] = float("nan")
    with pytest.raises(WrongMeasurement, match="logits"):
        compare_with_files(sample(changed, refusal), folder, load=LoadSettings())
