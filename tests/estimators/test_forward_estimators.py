"""Selections, adapters and cotangents, by the estimators that go forward, as by the definition."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from architectures import (
    VOCABULARY,
    build,
    make_probes,
    ragged_prompts,
    with_lora,
    worst_block_error,
)

from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.forward_mode import ForwardMode
from ntkprobe.kernel import Estimator, Probe


@dataclass(frozen=True)
class Case:
    """An estimator, how far it may be off in float32, and what it is tried on.

    The tolerances are those of the estimators' own tests, above the largest error of a sweep over
    all architectures.
    """

    estimator: Estimator
    rtol: float
    model: str
    sizes: dict[str, int]
    prompts: int


CASES = {
    "finite difference": Case(FiniteDifference(step="unit"), 3e-2, "qwen2-untied", {"k": 2}, 3),
    "forward mode": Case(ForwardMode(), 1e-5, "qwen2-tied", {}, 4),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def error(case: Case, model, probes, *selection) -> float:
    expected = Dense()(model, probes, *selection)
    return worst_block_error(case.estimator(model, probes, *selection), expected)


@pytest.mark.parametrize("selection", ["last:1+head", "norm", "embed", "re:mlp"])
def test_parameter_selections_are_honoured(case, selection):
    model = build(case.model)
    assert error(case, model, make_probes(model, **case.sizes), selection) <= case.rtol


@pytest.mark.parametrize("selection", ["all", "lora"])
def test_adapters_are_measured_merged_or_alone(case, selection):
    model = with_lora(build("llama"))
    assert error(case, model, make_probes(model, **case.sizes), selection) <= case.rtol


def test_dense_cotangents_read_combinations_of_logits(case):
    model = build("llama")
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(case.prompts, 2, VOCABULARY, generator=generator)
    prompts = ragged_prompts()[: case.prompts]
    probes = [Probe(ids, cotangents=w) for ids, w in zip(prompts, weights, strict=True)]
    assert error(case, model, probes) <= case.rtol
