"""Shape annotations are checked under pytest, in every module that has some."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import shape_checks
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from ntkprobe.estimators.gram.threads import multiply

ROOT = Path(__file__).parents[1]
UNCHECKED = {"ntkprobe.models.validation"}
"""It refuses what users give, of any type, in its own words."""


def test_every_module_with_shape_annotations_is_checked():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    value = next(o for o in options["addopts"] if o.startswith("--jaxtyping-packages="))
    *listed, _ = value.partition("=")[2].split(",")
    annotated = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "ntkprobe").rglob("*.py")
        if "from jaxtyping import" in path.read_text("utf-8")
    }
    assert set(listed) == annotated - UNCHECKED and len(listed) == len(set(listed))


def test_shapes_that_contradict_an_annotation_are_refused():
    with pytest.raises(TypeCheckError):
        multiply(torch.zeros(2, 3), torch.zeros(4, 5))
    assert multiply(torch.zeros(1, 2, 3), torch.zeros(1, 3, 5)).shape == (1, 2, 5)


@pytest.fixture
def doubled():
    """A function as the import hook decorates it."""
    shape_checks.begin_test()

    @shape_checks.checked_at_first(typechecker=shape_checks.checked)
    def doubled(x: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        return x + x

    yield doubled
    shape_checks.begin_test()


def test_the_first_calls_of_a_function_are_checked_in_every_test(doubled):
    for _ in range(shape_checks.CALLS - 1):
        doubled(torch.zeros(2, 2))
    with pytest.raises(TypeCheckError):
        doubled(torch.zeros(2, 3))
    assert doubled(torch.zeros(2, 3)).shape == (2, 3)  # by now, it is not
    shape_checks.begin_test()
    with pytest.raises(TypeCheckError):
        doubled(torch.zeros(2, 3))


def test_a_dataclass_is_checked_when_it_is_made():
    @shape_checks.checked_at_first(typechecker=shape_checks.checked)
    @dataclass
    class Square:
        x: Float[Tensor, "n n"]

    assert Square(torch.zeros(2, 2))
    with pytest.raises(TypeCheckError):
        Square(torch.zeros(2, 3))


def test_a_function_without_shapes_is_left_as_it_is():
    def plain(x: int, more: list[str]) -> None:
        pass

    decorate = shape_checks.checked_at_first(typechecker=shape_checks.checked)
    assert decorate(plain) is plain
