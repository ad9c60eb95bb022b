"""Shape annotations are checked under pytest, in every module that has some."""

import tomllib
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from ntkprobe.estimators.gram.threads import multiply

ROOT = Path(__file__).parents[1]
UNCHECKED = {
    "ntkprobe.estimators.gram.gradient_rules",  # called for every operation of a forward pass
    "ntkprobe.models.validation",  # refuses what users give, of any type, in its own words
}
METHODS = "ntkprobe.mitigations."
"""Their `fit` returns `typing.Self`, which beartype refuses in a method that is wrapped alone."""


def test_every_module_with_shape_annotations_is_checked():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    value = next(o for o in options["addopts"] if o.startswith("--jaxtyping-packages="))
    *listed, _ = value.partition("=")[2].split(",")
    annotated = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "ntkprobe").rglob("*.py")
        if "from jaxtyping import" in path.read_text("utf-8")
    }
    annotated = {name for name in annotated - UNCHECKED if not name.startswith(METHODS)}
    assert set(listed) == annotated and len(listed) == len(set(listed))


def test_shapes_that_contradict_an_annotation_are_refused():
    with pytest.raises(TypeCheckError):
        multiply(torch.zeros(2, 3), torch.zeros(4, 5))
    assert multiply(torch.zeros(1, 2, 3), torch.zeros(1, 3, 5)).shape == (1, 2, 5)
