"""Laws of what can be measured: one call answers for a model and its prompts."""

import pytest
import torch
from architectures import build

from ntkprobe.errors import UserError
from ntkprobe.models.generation import require_measurable

PROMPTS = [[1, 2, 3], [4, 5]]


def test_what_is_differentiated_needs_more_than_what_is_computed():
    model = build("gpt2").eval()
    require_measurable(model, PROMPTS, gradients=True)
    with torch.inference_mode():
        require_measurable(model, PROMPTS)
        with pytest.raises(UserError, match="inference_mode, which has no gradients"):
            require_measurable(model, PROMPTS, gradients=True)


def test_tokens_to_come_count_in_the_context():
    model = build("gpt2").eval()
    require_measurable(model, [[1] * 30], new_tokens=2)
    with pytest.raises(UserError, match="30 tokens, and with 3 more to come it exceeds"):
        require_measurable(model, [[1] * 30], new_tokens=3)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "no prompts"),
        ([[1], []], "prompt 1 is empty"),
        ([[1], [10**6]], "prompt 1 holds a token outside the vocabulary"),
    ],
)
def test_prompts_that_a_model_cannot_read_are_refused_by_number(prompts, said, gradients):
    with pytest.raises(UserError, match=said):
        require_measurable(build("gpt2").eval(), prompts, gradients=gradients)


@pytest.mark.parametrize("gradients", [False, True])
def test_training_mode_and_weights_that_are_elsewhere_are_refused(gradients):
    with pytest.raises(UserError, match="training mode"):
        require_measurable(build("gpt2").train(), PROMPTS, gradients=gradients)
    with pytest.raises(UserError, match="offloaded"):
        require_measurable(build("gpt2").eval().to("meta"), PROMPTS, gradients=gradients)
