"""Many small products side by side: what they give, and what they leave as it was."""

import threading
import time

import pytest
import torch
from threadpoolctl import threadpool_info

from ntkprobe.estimators.gram import contractions, threads
from ntkprobe.estimators.gram.factors import Outer
from ntkprobe.estimators.gram.inner_products import inner_product
from ntkprobe.estimators.gram.threads import multiply, side_by_side

CPU = torch.device("cpu")
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def library_threads():
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


def factor(lengths, k=3, width=24, out=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n, seq = len(lengths), max(lengths)
    a = torch.randn(n, seq, width, generator=generator)
    g = torch.randn(n, k, seq, out, generator=generator)
    live = torch.arange(seq) < torch.tensor(lengths)[:, None]
    return Outer(a * live[..., None], g * live[:, None, :, None], tuple(lengths))


def explicit(p, q):
    rows, columns = (torch.einsum("nkto,ntw->nkow", f.g.double(), f.a.double()) for f in (p, q))
    return torch.einsum("nkow,mhow->nkmh", rows, columns)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_products_are_those_of_the_matrices_wherever_they_lie(dtype, kernels):
    left = torch.randn(4, 3, 6, 10, dtype=torch.float64).transpose(1, 2)[:, :5]
    right = torch.randn(4, 1, 8, 10, dtype=torch.float64).permute(0, 1, 3, 2)[..., 2:]
    expected = torch.einsum("abij,abjk->abik", left, right.expand(4, 5, 10, 6))
    room = torch.zeros(4, 5, 3, 6, dtype=dtype)
    multiply(left.to(dtype), right.to(dtype), room)
    for found in (multiply(left.to(dtype), right.to(dtype)), room):
        assert (found - expected).abs().max() <= DTYPES[dtype] * expected.abs().max()


@pytest.fixture(params=[True, False], ids=["in place", "copied first"])
def kernels(request, monkeypatch):
    """Small matrices multiplied in place, and as where numpy has no kernels for that."""
    monkeypatch.setattr(threads, "small_kernels", lambda: request.param)


@pytest.mark.parametrize("order", ["ghost", "mixed", "explicit"])
@pytest.mark.parametrize("same", [True, False], ids=["one micro-batch", "two micro-batches"])
def test_every_order_gives_the_inner_products_of_the_gradients(order, same, kernels, monkeypatch):
    p = factor([4, 7, 9, 9, 2])
    q = p if same else factor([5, 3, 8], k=2, seed=1)
    monkeypatch.setattr(contractions, "cheapest", lambda p, q: order)
    expected = explicit(p, q)
    assert (inner_product(p, q) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("settings", [(1, 1, 1), (10**3, 30, 7), (10**9, 10**9, 10**9)])
def test_how_much_is_done_at_a_time_changes_nothing(settings, kernels, monkeypatch):
    p = factor([4, 7, 9, 9, 2])
    monkeypatch.setattr(contractions, "cheapest", lambda p, q: "mixed")
    for name, value in zip(
        ("SMALL_MULTIPLY_ADDS", "SMALL_OUTPUT", "SMALL_COLUMNS"), settings, strict=True
    ):
        monkeypatch.setattr(contractions, name, value)
    expected = explicit(p, p)
    assert (inner_product(p, p) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_as_many_threads_as_there_are_give_the_same_numbers_bit_for_bit(two_threads):
    p, q = (factor([t] * 30, k=10, width=64, out=500, seed=t) for t in (20, 25))
    assert contractions.cheapest(p, q) == "mixed"  # the order that is divided over threads here
    side = inner_product(p, q)
    torch.set_num_threads(1)
    assert torch.equal(side, inner_product(p, q))


def test_a_product_that_torch_divides_over_threads_differs_by_rounding_alone(two_threads):
    p, q = (factor([t] * 30, k=10, out=500, seed=t) for t in (20, 25))
    assert contractions.cheapest(p, q) == "explicit"  # in one piece
    side = inner_product(p, q)
    torch.set_num_threads(1)
    alone = inner_product(p, q)
    assert (side - alone).norm() <= 1e-6 * alone.norm()


def test_the_pieces_have_one_thread_each_and_afterwards_all_is_as_before(two_threads):
    before, seen = library_threads(), []
    side_by_side([lambda: seen.append((torch.get_num_threads(), library_threads()))] * 3, CPU)
    assert seen == [(1, [1] * len(before))] * 3
    assert (torch.get_num_threads(), library_threads()) == (2, before)


@pytest.mark.skipif(2 > max(library_threads(), default=0), reason="the library has one thread")
def test_callers_that_overlap_leave_the_threads_as_the_first_one_found_them(two_threads):
    before = library_threads()

    def call(wait, work):
        time.sleep(wait)
        side_by_side([lambda: time.sleep(work)], CPU)

    callers = [threading.Thread(target=call, args=times) for times in ((0, 0.1), (0.05, 0.2))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    seen = []
    late = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    late.start(), late.join()
    assert (library_threads(), torch.get_num_threads(), seen) == (before, 2, [2])


def test_a_matrix_that_no_row_came_to_has_no_part_in_the_kernel():
    p, none = factor([4, 7, 9]), Outer(torch.zeros(3, 0, 24), torch.zeros(3, 3, 0, 40), (0, 0, 0))
    assert inner_product(p, none).shape == (3, 3, 3, 3)
    assert not inner_product(p, none).any() and not inner_product(none, none).any()


def test_a_piece_that_fails_is_heard_of_and_leaves_the_threads_as_they_were(two_threads):
    before = library_threads()
    with pytest.raises(ZeroDivisionError):
        side_by_side([lambda: None, lambda: 1 / 0], CPU)
    assert (torch.get_num_threads(), library_threads()) == (2, before)
