"""Kernels stored as their halves while they are summed up."""

import pytest
import torch
from architectures import build, make_probes

from ntkprobe.estimators.gram import Gram
from ntkprobe.estimators.gram.stored_kernels import KernelsByGroup, rectangular, symmetric

N, K = 5, 3
TILES = [slice(0, 2), slice(2, 5)]


def random_kernel():
    """Return a symmetric kernel of N prompts, `[n, k, n, k]`."""
    rows = torch.randn(N * K, 40, generator=torch.Generator().manual_seed(1)).double()
    return (rows @ rows.T).view(N, K, N, K)


def tiles_on_and_above_the_diagonal():
    return [(a, b) for i, a in enumerate(TILES) for b in TILES[i:]]


def test_the_half_of_a_kernel_gives_all_of_it():
    kernel, stored = random_kernel(), symmetric(N, K)()
    for a, b in tiles_on_and_above_the_diagonal():
        stored.add(a, b, kernel[a, :, b])
    assert torch.equal(stored.whole(), kernel)
    assert stored.pairs.numel() < 0.65 * kernel.numel()


def test_tiles_are_added_to_what_is_there():
    kernel, stored = random_kernel(), symmetric(N, K)()
    for a, b in 2 * tiles_on_and_above_the_diagonal():
        stored.add(a, b, kernel[a, :, b])
    assert torch.equal(stored.whole(), 2 * kernel)


def test_a_tile_that_is_missing_is_missed():
    kernel, stored = random_kernel(), symmetric(N, K)()
    for a, b in tiles_on_and_above_the_diagonal()[:-1]:
        stored.add(a, b, kernel[a, :, b])
    assert not torch.allclose(stored.whole(), kernel)


def test_a_kernel_between_two_models_need_not_be_symmetric():
    kernel = torch.arange(2 * 3 * 4 * 5.0).double().view(2, 3, 4, 5)
    stored = rectangular(2, 3, 4, 5)()
    stored.add(slice(0, 2), slice(0, 3), kernel[:, :, :3])
    stored.add(slice(0, 2), slice(3, 4), kernel[:, :, 3:])
    assert torch.equal(stored.whole(), kernel)


def test_prompts_are_in_the_order_in_which_they_were_given():
    kernel, stored = random_kernel(), symmetric(N, K)()
    stored.add(slice(0, N), slice(0, N), kernel)
    order = torch.tensor([3, 0, 4, 1, 2])
    found = KernelsByGroup({"all": stored}, order, order)["all"]
    assert torch.equal(found, kernel[order][:, :, order])
    assert not torch.equal(found, kernel)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_parts_sum_to_the_kernel_whatever_the_batches(batch_size):
    model = build("qwen2-tied", torch.float64)
    probes = make_probes(model)
    gram = Gram(batch_size=batch_size)
    parts = gram.by_part(model, probes)
    torch.testing.assert_close(sum(parts.values()), gram(model, probes))
