"""Whatever estimator is put into the folder computes the kernel, to what it claims."""

import inspect

import pytest
import torch
from architectures import worst_block_error

from ntkprobe import PromptSet, estimators, plugins
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.estimators.dense import Dense
from ntkprobe.kernel import Estimator, Probe, top_tokens
from ntkprobe.measurement import encode
from ntkprobe.tiny import files


@pytest.fixture(scope="module")
def world():
    name = str(files.model_path())
    model, prompts = load_model(name), PromptSet.from_file(files.measure_path())[:2]
    ids = [torch.tensor(row) for row in encode(load_tokenizer(name), prompts).input_ids]
    probes = [Probe(*each) for each in zip(ids, top_tokens(model, ids, 3), strict=True)]
    return model, probes, Dense()(model, probes, "all")


@pytest.mark.slow
@pytest.mark.parametrize("name", plugins.names(estimators))
def test_an_estimator_agrees_with_the_definition(world, name):
    model, probes, expected = world
    method = plugins.load(estimators, name)()
    found = method(model, probes, "all")
    assert found.dtype == torch.float64 and found.shape == (2, 3, 2, 3)
    assert worst_block_error(found, expected) < getattr(method, "rtol", 1e-4)


def arguments(method):
    """Return what a method is called with after itself: names, and whether each may be left out."""
    given = list(inspect.signature(method).parameters.values())[1:]
    return [(each.name, each.default is not each.empty) for each in given]


@pytest.mark.parametrize("name", plugins.names(estimators))
def test_an_estimator_is_called_as_the_protocol_says_and_takes_all_parameters_unasked(name):
    method = plugins.load(estimators, name).__call__
    assert arguments(method) == arguments(Estimator.__call__)
    assert inspect.signature(method).parameters["parameters"].default == "all"


def test_not_everything_that_can_be_called_is_called_so():
    assert arguments(top_tokens) != arguments(Estimator.__call__)


def test_an_estimator_that_reads_other_tokens_does_not(world):
    model, probes, expected = world
    others = [Probe(probe.input_ids, probe.tokens.flip(0)) for probe in probes]
    assert worst_block_error(Dense()(model, others, "all"), expected) > 0.05
