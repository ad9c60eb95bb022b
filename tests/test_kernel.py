"""Laws of the kernel's definition, of the logits it reads, and of what is done with its norms."""

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    build,
    make_probes,
    ragged_prompts,
    with_lora,
    worst_block_error,
)

from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense
from ntkprobe.kernel import (
    Probe,
    group_means,
    last_logits,
    norms,
    prepare,
    similarity,
    symmetric_similarity,
    top_tokens,
)
from ntkprobe.models.precision import Float64Throughout


@pytest.fixture(scope="module")
def kernel():
    model = build("qwen2-tied")
    return Dense()(model, make_probes(model))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompt_reads_the_same_logits_alone_and_beside_longer_ones(name):
    model, prompts = build(name), ragged_prompts()
    with torch.no_grad():
        together = last_logits(model, prompts)
        alone = torch.cat([last_logits(model, [prompt]) for prompt in prompts])
        plain = torch.stack([model(prompt[None]).logits[0, -1] for prompt in prompts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, plain, rtol=1e-4, atol=1e-5)


def test_logits_read_at_the_padded_end_would_be_others():
    model, prompts = build("gpt2"), ragged_prompts()
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    with torch.no_grad():
        assert not torch.allclose(model(padded).logits[:, -1], last_logits(model, prompts))


def test_dense_blocks_are_symmetric_and_positive(kernel):
    n, k = kernel.shape[:2]
    torch.testing.assert_close(kernel, kernel.permute(2, 3, 0, 1))
    assert torch.linalg.eigvalsh(kernel.reshape(n * k, n * k)).min() > -1e-9 * kernel.abs().max()


def test_dense_in_float64_agrees_with_float32_to_its_rounding():
    single, double = build("gemma2"), build("gemma2", torch.float64)
    probes = make_probes(single)
    with Float64Throughout():
        exact = Dense()(double, probes)
    assert worst_block_error(Dense()(single, probes), exact) < 1e-5


def test_a_block_predicts_the_change_of_logits_under_a_small_step():
    model = build("qwen2-tied", torch.float64)
    observed, updated = make_probes(model)[:2]
    with Float64Throughout():
        block = Dense()(model, [observed, updated])[0, :, 1]
        before = observed.read(last_logits(model, [observed.input_ids])[0])
        updated.read(last_logits(model, [updated.input_ids])[0])[0].backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-7 * parameter.grad
            after = observed.read(last_logits(model, [observed.input_ids])[0])
    torch.testing.assert_close((after - before) / 1e-7, block[:, 0], rtol=1e-4, atol=1e-4)


def test_cotangents_that_pick_tokens_give_the_tokens_kernel(kernel):
    model = build("qwen2-tied")
    probes = [
        Probe(p.input_ids, cotangents=torch.eye(model.config.vocab_size)[p.tokens])
        for p in make_probes(model)
    ]
    torch.testing.assert_close(Dense()(model, probes), kernel)


def test_parts_sum_to_the_kernel(kernel):
    model = build("qwen2-tied")
    parts = Dense().by_part(model, make_probes(model))
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(0), kernel)


def test_norms_are_the_frobenius_norms_of_the_blocks(kernel):
    assert norms(kernel)[0, 2] == pytest.approx(float(kernel[0, :, 2, :].square().sum().sqrt()))


def test_similarity_of_a_prompt_with_itself_is_one(kernel):
    ones = torch.ones(len(kernel), dtype=torch.float64)
    torch.testing.assert_close(similarity(norms(kernel)).diagonal(), ones)
    torch.testing.assert_close(symmetric_similarity(norms(kernel)).diagonal(), ones)


def test_similarity_divides_a_row_by_the_observed_prompts_own_norm():
    table = torch.tensor([[2.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    assert similarity(table).tolist() == [[1.0, 0.5], [0.25, 1.0]]
    assert symmetric_similarity(table)[0, 1] == symmetric_similarity(table)[1, 0]


def test_group_means_leave_self_pairs_out_unless_asked():
    table = torch.tensor([[9.0, 1.0, 2.0], [3.0, 9.0, 4.0], [5.0, 6.0, 9.0]], dtype=torch.float64)
    groups = ["toxic", "toxic", "normal"]
    without, with_self = group_means(table, groups), group_means(table, groups, self_pairs=True)
    assert without["toxic", "toxic"] == 2 and with_self["toxic", "toxic"] == pytest.approx(5.5)
    assert without["toxic", "normal"] == 3 and without["normal", "toxic"] == pytest.approx(5.5)
    assert ("normal", "normal") not in without and with_self["normal", "normal"] == 9


def test_top_tokens_are_the_largest_logits_whatever_the_batch():
    model, prompts = build("llama"), ragged_prompts()
    found = top_tokens(model, prompts, 4, batch_size=3)
    logits = model(prompts[2][None]).logits[0, -1]
    assert found[2].tolist() == logits.topk(4).indices.tolist()


def test_a_kernel_of_zero_has_no_similarity():
    with pytest.raises(UserError, match="no logit of a prompt depends"):
        similarity(torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("k", [0, 49])
def test_top_tokens_beyond_the_vocabulary_are_refused(k):
    with pytest.raises(UserError, match="from 1 to 48"):
        top_tokens(build("llama"), ragged_prompts(), k)


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError, match="empty"):
        Probe(torch.tensor([], dtype=torch.long), torch.tensor([1]))


def test_a_probe_reads_one_thing():
    with pytest.raises(UserError, match="one of the two"):
        Probe(torch.tensor([1]))


def refused(why, model=None, prompt=(1, 2), tokens=(1,), parameters="all"):
    with pytest.raises(UserError, match=why):
        probe = Probe(torch.tensor(prompt), torch.tensor(tokens))
        Dense()(model or build("llama"), [probe], parameters)


def test_a_prompt_longer_than_the_context_is_refused():
    refused("context of 32", prompt=(1,) * 33)


@pytest.mark.parametrize("bad", [dict(prompt=(48,)), dict(tokens=(-1,)), dict(tokens=(50,))])
def test_a_token_outside_the_vocabulary_is_refused(bad):
    refused("outside the vocabulary", **bad)


def test_blocks_of_unequal_size_are_refused():
    probes = [Probe(torch.tensor([1]), torch.arange(k)) for k in (1, 2)]
    with pytest.raises(UserError, match="same k"):
        prepare(build("llama"), probes, "all")


def test_nothing_to_measure_is_refused():
    with pytest.raises(UserError, match="at least one prompt"):
        prepare(build("llama"), [], "all")


def test_training_mode_is_refused():
    refused("call model.eval", build("llama").train())


def test_offloaded_weights_are_refused():
    refused("offloaded", build("llama").to("meta"))


def test_logits_that_are_not_finite_are_refused():
    model = build("llama")
    model.lm_head.weight.data[3] = torch.nan
    refused("NaN or infinite", model)


def test_quantised_weights_are_refused():
    model = build("llama")
    weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    model.model.layers[0].mlp.up_proj.weight = weight
    refused("quantised", model)


def test_weights_quantised_into_buffers_are_refused():
    model = build("llama")
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    refused("quantised", model)


def test_a_sharded_model_is_refused():
    class FullyShardedDataParallel(torch.nn.Module):
        pass

    model = build("llama")
    model.model.layers[0].mlp.act_fn = FullyShardedDataParallel().eval()
    refused("FSDP", model)


def test_an_adapter_other_than_plain_lora_is_refused():
    refused("no plain LoRA", with_lora(build("llama"), use_dora=True))
