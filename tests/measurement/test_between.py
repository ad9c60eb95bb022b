"""The kernel between two checkpoints, from texts."""

import pytest
import torch
from tiny_runs import TEXTS, tiny_model, tiny_tokenizer

import ntkprobe as ntk
from ntkprobe.estimators.dense import jacobians
from ntkprobe.kernel import Probe, norms
from ntkprobe.measurement import encode

PROMPTS = ntk.PromptSet.from_texts(TEXTS)
TOKENIZER = tiny_tokenizer()


def shifted(scale=0.1):
    """Return the tiny model a step away from itself."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def test_it_is_the_product_of_both_models_gradients_at_the_same_tokens():
    later, earlier = shifted(), tiny_model()
    found = ntk.measure_between(later, earlier, TOKENIZER, PROMPTS, top_k=2, keep_blocks=True)
    ids = [torch.tensor(row) for row in encode(TOKENIZER, PROMPTS).input_ids]
    probes = [Probe(row, tokens=block) for row, block in zip(ids, found.tokens, strict=True)]
    rows, columns = (jacobians(model, probes) for model in (later, earlier))
    expected = sum(torch.einsum("aip,bjp->aibj", rows[name], columns[name]) for name in rows)
    torch.testing.assert_close(found.blocks.double(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.norms, norms(expected), rtol=1e-4, atol=1e-6)


def test_the_tokens_are_those_of_the_updated_model_unless_given():
    later, earlier = shifted(), tiny_model()
    own = ntk.measure_kernel(earlier, TOKENIZER, PROMPTS, top_k=2).tokens
    found = ntk.measure_between(later, earlier, TOKENIZER, PROMPTS, top_k=2)
    given = ntk.measure_between(later, earlier, TOKENIZER, PROMPTS, tokens=[3, 4])
    assert torch.equal(found.tokens, own)
    assert torch.equal(given.tokens, torch.tensor([[3, 4]] * len(PROMPTS)))


def test_between_a_model_and_itself_it_is_the_kernel():
    model = tiny_model()
    found = ntk.measure_between(model, model, TOKENIZER, PROMPTS, top_k=2, parameters="last:1")
    own = ntk.measure_kernel(model, TOKENIZER, PROMPTS, top_k=2, parameters="last:1")
    torch.testing.assert_close(found.norms, own.norms, rtol=1e-4, atol=0)


def test_two_models_of_other_parameters_are_refused():
    other = tiny_model()
    other.spare = torch.nn.Linear(1, 1)
    with pytest.raises(ntk.UserError, match="not the same parameters"):
        ntk.measure_between(other, tiny_model(), TOKENIZER, PROMPTS, tokens=[3])


def test_a_checkpoint_with_more_rows_of_vocabulary_is_refused():
    other = tiny_model()
    other.resize_token_embeddings(other.config.vocab_size + 8, mean_resizing=False)
    with pytest.raises(ntk.UserError, match="not the same parameters, by name and shape"):
        ntk.measure_between(other, tiny_model(), TOKENIZER, PROMPTS, tokens=[3])


def test_a_model_of_no_numbers_is_refused_whichever_it_is():
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight[0] = float("nan")
    for pair in ((broken, tiny_model()), (tiny_model(), broken)):
        with pytest.raises(ntk.UserError, match=r"NaN|finite"):
            ntk.measure_between(*pair, TOKENIZER, PROMPTS, tokens=[3])
    with pytest.raises(ntk.UserError, match="load it first"):
        ntk.measure_between("a name", tiny_model(), TOKENIZER, PROMPTS)
