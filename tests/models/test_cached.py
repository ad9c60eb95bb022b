"""Kept keys and values: the numbers of plain passes, or not used."""

import copy

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    VOCABULARY,
    build,
    perturbed,
    ragged_prompts,
    with_lora,
)
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from ntkprobe.models import cached
from ntkprobe.models.answers import greedy_tokens
from ntkprobe.models.cached import Beginning, batches, read, shared_ids, usable
from ntkprobe.models.generation import Answer, answer_batch, answer_cached, generate_answers

SYSTEM = torch.tensor([3, 1, 4, 1])
PROMPTS = [torch.cat([SYSTEM, ids]) for ids in ragged_prompts((5, 3, 9, 1, 10))]


class Spelled:
    """A tokenizer that ends nothing and writes ids as numbers."""

    eos_token_id = pad_token_id = None
    all_special_ids: tuple[int, ...] = ()

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def plain(model, ids):
    return model(torch.as_tensor(ids)[None]).logits[0, -1]


def test_shared_ids_are_what_all_begin_with_and_leave_each_prompt_a_token():
    assert shared_ids(PROMPTS) == SYSTEM.tolist()
    assert shared_ids([torch.tensor([1, 2]), torch.tensor([1, 2])]) == [1]
    assert shared_ids([torch.tensor([1, 2]), torch.tensor([1, 2, 3])]) == [1]
    assert shared_ids([torch.tensor([1, 2]), torch.tensor([2, 2])]) == []
    assert shared_ids(PROMPTS[:1]) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_prompts_behind_a_kept_beginning_have_the_logits_of_plain_passes(name):
    model = build(name)
    assert usable(model, PROMPTS, 4)
    kept = read(model, PROMPTS, Beginning.of(model, PROMPTS))
    expected = torch.stack([plain(model, ids) for ids in PROMPTS])
    torch.testing.assert_close(kept.logits, expected, atol=1e-4, rtol=1e-4)
    after = kept.append(torch.tensor([7, 8, 9, 10, 11]))
    texts = [[*ids.tolist(), 7 + row] for row, ids in enumerate(PROMPTS)]
    expected = torch.stack([plain(model, text) for text in texts])
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_column_that_sees_another_continuation_has_other_logits():
    model = build("llama")
    kept = read(model, PROMPTS[:1], Beginning(0, []))
    alone, both = kept.fork(), kept.fork()
    seen = torch.cat([kept.real, torch.zeros(1, 2, dtype=torch.bool)], 1)[:, None].repeat(1, 2, 1)
    tokens, places = torch.tensor([[7, 8]]), torch.tensor([[9, 9]])
    found = alone.run(tokens, places, seen.clone())
    torch.testing.assert_close(found[0, 1], plain(model, [*PROMPTS[0], 8]), atol=1e-4, rtol=1e-4)
    seen[:, 1, -2] = True
    assert (both.run(tokens, places, seen)[0, 1] - found[0, 1]).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma3", "qwen3_moe", "gpt_oss", "phi3"])
def test_answers_from_kept_columns_are_those_of_generate(name):
    model = build(name)
    for stops in ((), (5, 9, 17, 30)):
        expected = [
            answer_batch(model, Spelled(), [ids], max_new_tokens=12, stop_ids=stops)[0]
            for ids in PROMPTS
        ]
        found: list[Answer | None] = [None] * len(PROMPTS)
        for rows, kept in batches(model, PROMPTS, 3):
            new = answer_cached(kept, Spelled(), max_new_tokens=12, stop_ids=stops, rows=rows)
            for row, answer in zip(rows, new, strict=True):
                found[row] = answer
        assert found == expected
        texts = generate_answers(model, Spelled(), PROMPTS, max_new_tokens=12, stop_ids=stops)
        assert texts == [answer.text for answer in expected]


def test_an_answer_that_ended_is_run_no_more(monkeypatch):
    model = build("llama")
    kept = read(model, PROMPTS, Beginning.of(model, PROMPTS))
    free = greedy_tokens(kept, [], 8)
    stop = free[0][1]
    sizes = []
    original = cached.CachedPrompts.append
    monkeypatch.setattr(
        cached.CachedPrompts,
        "append",
        lambda self, tokens: (sizes.append(len(tokens)), original(self, tokens))[1],
    )
    ended = greedy_tokens(kept, [stop], 8)
    assert [len(each) for each in ended] == [
        each.index(stop) + 1 if stop in each else 8 for each in free
    ]
    running = [sum(len(each) > step + 1 for each in ended) for step in range(max(map(len, ended)))]
    assert sizes == [size for size in running if size]


def test_an_adapter_counts():
    model = with_lora(build("llama"))
    assert usable(model, PROMPTS, 4)
    kept = read(model, PROMPTS, Beginning.of(model, PROMPTS))
    with torch.no_grad():
        expected = plain(model, PROMPTS[2])
    torch.testing.assert_close(kept.logits[2], expected, atol=1e-4, rtol=1e-4)
    with model.disable_adapter(), torch.no_grad():
        assert (plain(model, PROMPTS[2]) - kept.logits[2]).abs().max() > 1e-2


SMALL = dict(vocab_size=VOCABULARY, hidden_size=16)
RECURRENT = {
    "a state space": lambda: MambaForCausalLM(
        MambaConfig(**SMALL, num_hidden_layers=2, state_size=4)
    ),
    "a hybrid": lambda: JambaForCausalLM(
        JambaConfig(
            **SMALL,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=24,
            attn_layer_offset=1,
            attn_layer_period=2,
            mamba_d_state=4,
            mamba_dt_rank=2,
            use_mamba_kernels=False,
        )
    ),
    "ALiBi": lambda: BloomForCausalLM(BloomConfig(**SMALL, n_layer=2, n_head=4)),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_model_with_a_state_or_without_positions_is_run_plainly(kind):
    torch.manual_seed(0)
    assert not usable(RECURRENT[kind]().eval(), PROMPTS, 4)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_model_that_looks_at_the_length_of_a_pass_is_run_plainly(kind):
    rope = dict(rope_type=kind, rope_theta=10000.0, factor=2.0)
    if kind == "longrope":
        rope |= dict(short_factor=[1.0] * 2, long_factor=[2.0] * 2)
        rope |= dict(original_max_position_embeddings=16)
    model = build("phi3" if kind == "longrope" else "llama", rope_parameters=rope)
    assert not usable(model, PROMPTS, 4)


def test_under_a_hook_a_model_is_run_plainly():
    model = build("llama")
    assert usable(model, PROMPTS, 4)
    handle = model.model.layers[0].register_forward_hook(lambda *_: None)
    assert not usable(model, PROMPTS, 4)
    handle.remove()
    assert usable(model, PROMPTS, 4)


def test_a_model_whose_mask_is_wrong_is_found_out(monkeypatch):
    model = build("llama")
    original = cached.additive_masks

    def everyone(model, allowed, *rest):
        return original(model, torch.ones_like(allowed), *rest)

    monkeypatch.setattr(cached, "additive_masks", everyone)
    assert not usable(model, PROMPTS, 4)


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_trial_that_memory_does_not_suffice_for_is_no_verdict_on_the_model(monkeypatch, error):
    model = build("llama")

    def exhaust(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(cached, "additive_masks", exhaust)
        with pytest.raises(torch.OutOfMemoryError):
            usable(model, PROMPTS, 4)
    assert usable(model, PROMPTS, 4)


def test_a_trial_that_fails_otherwise_is_remembered(monkeypatch):
    model = build("llama")

    def refuse(*_):
        raise RuntimeError("no such mask")

    with monkeypatch.context() as patch:
        patch.setattr(cached, "additive_masks", refuse)
        assert not usable(model, PROMPTS, 4)
    assert not usable(model, PROMPTS, 4)


def test_longer_prompts_are_tried_again(monkeypatch):
    model, tried = build("llama"), []
    original = cached.trial_error
    monkeypatch.setattr(
        cached, "trial_error", lambda *given: (tried.append(given[2]), original(*given))[1]
    )
    assert usable(model, PROMPTS[:2], 4) and usable(model, PROMPTS[:1], 3)
    assert tried == [4]
    assert usable(model, PROMPTS, 4) and usable(model, PROMPTS, 9)
    assert tried == [4, 4, 9]


def test_a_local_window_that_counts_columns_is_excluded_by_rule_and_by_the_trial(monkeypatch):
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=97,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        intermediate_size=24,
        max_position_embeddings=512,
        attention_types=[[["global", "local"], 1]],
        window_size=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = perturbed(GPTNeoForCausalLM(config)).eval()
    given = [torch.arange(40) % 97, torch.arange(38) % 97]
    assert not usable(model, given, 8)
    monkeypatch.setattr(cached, "KINDS", {*cached.KINDS, "global", "local"})
    assert not usable(model, given, 8)
    monkeypatch.setattr(cached, "BESIDE", 2)  # too few columns to show it
    assert usable(copy.deepcopy(model), given, 8)  # of the model itself a verdict is kept


def test_a_verdict_is_of_one_dtype(monkeypatch):
    model = build("llama", torch.bfloat16)
    given = [torch.arange(1, 9), torch.arange(1, 6)]
    errors = {torch.bfloat16: 0.05, torch.float32: 0.05}
    monkeypatch.setattr(
        cached, "trial_error", lambda model, *_: errors[next(model.parameters()).dtype]
    )
    assert usable(model, given, 2) and not usable(model.float(), given, 2)
