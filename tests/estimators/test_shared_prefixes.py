"""What prompts begin with alike is paid for once, and changes no number."""

from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, build, ragged_prompts, with_lora, worst_block_error

from ntkprobe.estimators.dense import Dense, jacobians
from ntkprobe.estimators.gram import Gram, shared_prefixes
from ntkprobe.estimators.gram.factors import Outer
from ntkprobe.kernel import Probe, top_tokens
from ntkprobe.models.precision import Float64Throughout

HEAD = 6


def probes_alike(model, head=HEAD):
    """Return probes of prompts that begin with the same tokens."""
    same = torch.arange(3, 3 + head)
    prompts = [torch.cat([same, ids]) for ids in ragged_prompts()]
    return [
        Probe(ids, top) for ids, top in zip(prompts, top_tokens(model, prompts, 3), strict=True)
    ]


@pytest.fixture
def splits(monkeypatch):
    """Split wherever there is something to split at, and count how often."""
    seen, split = [], shared_prefixes.split_activations
    monkeypatch.setattr(shared_prefixes, "saves_operations", lambda p, q, r: True)
    monkeypatch.setattr(
        shared_prefixes, "split_activations", lambda p, q, r: seen.append(r) or split(p, q, r)
    )
    return seen


def outer(a, g):
    return Outer(a, g, (a.shape[1],) * len(a))


def alike(n=4, r=3, seq=7, width=8, dtype=torch.float32):
    """Return a factor whose first r positions have the same activations in all prompts."""
    a, g = torch.randn(n, seq, width, dtype=dtype), torch.randn(n, 2, seq, 5, dtype=dtype)
    a[:, :r] = a[0, :r].clone()
    return outer(a, g)


def by_definition(p, q):
    rows, columns = (torch.einsum("nkto,ntw->nkow", f.g.double(), f.a.double()) for f in (p, q))
    return torch.einsum("nkow,mhow->nkmh", rows, columns)


def evaluated(p, q):
    product = shared_prefixes.contract(p, q, {})
    for piece in product.pieces:
        piece()
    return product.result()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prompts_that_begin_alike_have_the_kernel_of_the_definition(name, splits):
    model = build(name, torch.float64)
    with Float64Throughout():
        probes = probes_alike(model)
        found = Gram(batch_size=3)(model, probes)
        assert worst_block_error(found, Dense()(model, probes)) <= 1e-9
    assert HEAD in splits


@pytest.mark.parametrize("name", ["gpt2", "qwen2-tied", "gemma3", "mixtral"])
def test_in_float32_too(name, splits):
    model = build(name)
    probes = probes_alike(model)
    assert worst_block_error(Gram()(model, probes), Dense()(model, probes)) <= 1e-4
    assert HEAD in splits


def test_an_adapters_kernel_too(splits):
    model = with_lora(build("llama"))
    probes = probes_alike(model)
    found, expected = (each(model, probes, "lora") for each in (Gram(), Dense()))
    assert worst_block_error(found, expected) <= 1e-4
    assert HEAD in splits


def test_between_two_checkpoints_it_changes_nothing(splits):
    first, second = build("qwen2-tied", torch.float64), build("qwen2-tied", torch.float64)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    with Float64Throughout():
        probes = probes_alike(first)
        found = Gram().between(first, probes, second, probes)
        rows, columns = (jacobians(model, probes) for model in (first, second))
    expected = sum(torch.einsum("nkp,mlp->nkml", rows[n], columns[n]) for n in rows)
    assert worst_block_error(found, expected) <= 1e-9


@pytest.mark.parametrize("same", [True, False], ids=["one micro-batch", "two micro-batches"])
@pytest.mark.parametrize("width", [8, 2], ids=["wider than shared", "narrower"])
def test_a_split_changes_no_inner_product(same, width, splits):
    p = alike(width=width)
    other = alike(n=3, seq=9, width=width)
    other.a[:, :3] = p.a[0, :3]
    q = p if same else other
    found, expected = evaluated(p, q), by_definition(p, q)
    assert splits == [3]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_positions_taken_for_shared_that_are_not_are_noticed(splits, monkeypatch):
    monkeypatch.setattr(shared_prefixes, "shared_length", lambda p, q: 4)
    p = alike(r=3)
    expected = by_definition(p, p)
    assert (evaluated(p, p) - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_rounding_does_not_part_what_is_the_same(dtype, noise):
    p = alike(dtype=dtype)
    assert (
        shared_prefixes.shared_length(replace(p, a=p.a * (1 + noise * torch.randn_like(p.a))), p)
        == 3
    )


def test_what_differs_by_more_than_rounding_is_not_shared():
    p = alike()
    moved = p.a.clone()
    moved[2, 1, 0] += 1e-3
    assert shared_prefixes.shared_length(outer(moved, p.g), p) == 1
    assert shared_prefixes.shared_length(p, outer(torch.randn_like(p.a), p.g)) == 0


def test_every_prompt_keeps_a_position_of_its_own():
    p = alike(r=7)
    assert shared_prefixes.shared_length(p, p) == 6
    assert shared_prefixes.shared_length(replace(p, lengths=(7, 3, 7, 7)), p) == 2
    assert shared_prefixes.shared_length(replace(p, lengths=(7, 1, 7, 7)), p) == 0


def test_a_split_is_made_where_it_saves_operations_and_nowhere_else():
    g = torch.randn(12, 10, 24, 64)
    p = outer(torch.randn(12, 24, 256), g)
    assert shared_prefixes.saves_operations(p, p, 20)
    small = alike(n=2, r=1, seq=2)
    assert not shared_prefixes.saves_operations(small, small, 1)


def test_low_precision_is_never_split():
    p = alike(dtype=torch.bfloat16)
    assert shared_prefixes.shared_length(p, p) == 0
