"""Laws of trying again with fewer prompts at a time where memory runs out."""

import pytest
import torch

from ntkprobe.models.memory import halving, ran_out


def room_for(fits, error):
    """Return a measurement that has room for so many prompts at a time, and the sizes tried."""
    tried = []

    def measure(size):
        tried.append(size)
        if size > fits:
            raise error
        return f"{size} at a time"

    return measure, tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_the_number_of_prompts_is_halved_until_it_fits(error):
    measure, tried = room_for(5, error)
    assert halving(measure, 32) == ("4 at a time", 4) and tried == [32, 16, 8, 4]


def test_what_fits_is_measured_once():
    measure, tried = room_for(32, MemoryError())
    assert halving(measure, 32) == ("32 at a time", 32) and tried == [32]


def test_one_prompt_that_does_not_fit_is_one_kind_of_error():
    measure, tried = room_for(0, MemoryError())
    with pytest.raises(torch.OutOfMemoryError):
        halving(measure, 4)
    assert tried == [4, 2, 1]


def test_another_error_is_not_tried_again():
    measure, tried = room_for(0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        halving(measure, 4)
    assert tried == [4] and not ran_out(RuntimeError("shapes differ"))
