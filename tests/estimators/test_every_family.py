"""Every causal family of the installed transformers: measured as autograd has it, or refused.

`make families`; some minutes. Which families there are depends on the transformers installed.
"""

import pytest
import torch
from architectures import ragged_prompts, worst_block_error
from every_family import FAMILIES, at_most, tiny

from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.gram import Gram
from ntkprobe.kernel import Probe, top_tokens
from ntkprobe.models.generation import generate_answers
from ntkprobe.refusal import score_phrases

PROMPTS = ragged_prompts((5, 3, 9, 4))
PHRASES = [(3, 4, 9), (7,), (3, 5)]
ODD = ["jetmoe", "bigbird_pegasus", "hrm_text", "cpmant", "doge", "openai-gpt"]
"""Experts in one gathered list; positions that all prompts look up at once; blocks run without a
gradient; a model that padding changes; parameters of the blocks themselves; and blocks that return
a list."""


class Digits:
    eos_token_id, pad_token_id = None, 0

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(map(str, ids))


def gram_error(model):
    probes = [Probe(ids, torch.tensor([1, 2, 5])) for ids in PROMPTS]
    return worst_block_error(Gram()(model, probes), Dense()(model, probes))


@pytest.mark.slow
@pytest.mark.parametrize("family", ODD)
def test_gram_is_exact_on_families_with_operations_of_their_own(family):
    assert gram_error(tiny(family)) < 1e-5


def test_an_expert_without_a_rule_is_counted_as_such():
    probes = [Probe(ids, torch.tensor([1, 2, 5])) for ids in PROMPTS]
    handled = Gram().coverage(tiny("jetmoe"), probes)
    left = {name for name, how in handled.items() if how == "autograd"}
    assert left and all("experts" in name or "mlp" in name for name in left)
    assert handled["model.embed_tokens.weight"] == "table"


@pytest.mark.families
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_measured_as_autograd_has_it_and_each_prompt_as_alone(family):
    try:
        with at_most(60):
            model = tiny(family)
            for ids in PROMPTS:
                model(input_ids=ids[None], use_cache=False)
            model.generate(PROMPTS[0][None], do_sample=False, max_new_tokens=4)
    except Exception as error:
        pytest.skip(f"no tiny model: {type(error).__name__}")
    try:
        with at_most(240):
            assert gram_error(model) < 1e-4
            tops = top_tokens(model, PROMPTS, 3)
            alone = [top_tokens(model, [ids], 3)[0] for ids in PROMPTS]
            assert torch.equal(torch.stack(tops), torch.stack(alone))
            scores = score_phrases(model, PROMPTS, PHRASES)
            each = torch.cat([score_phrases(model, [ids], PHRASES) for ids in PROMPTS])
            torch.testing.assert_close(scores, each, atol=1e-4, rtol=0)
            answers = generate_answers(model, Digits(), PROMPTS, max_new_tokens=4)
            single = [generate_answers(model, Digits(), [p], max_new_tokens=4)[0] for p in PROMPTS]
            assert answers == single
    except UserError as refused:
        assert len(str(refused).splitlines()) == 1
