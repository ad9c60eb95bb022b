"""Float32 is computed in float32, whatever the process is set to, and the setting is put back."""

import pytest
import torch
from architectures import build, make_probes

from ntkprobe.estimators.gram import Gram
from ntkprobe.models import precision

BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


def settings():
    return [backend.fp32_precision for backend in BACKENDS]


@pytest.fixture(params=["nothing", "all backends", "one backend", "as of old"])
def asked(request):
    """TF32, asked for in each of the ways that torch knows."""
    before = settings(), torch.backends.fp32_precision
    match request.param:
        case "all backends":
            torch.backends.fp32_precision = "tf32"
        case "one backend":
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        case "as of old":
            torch.set_float32_matmul_precision("high")
    yield request.param
    for backend, value in zip(BACKENDS, before[0], strict=True):
        backend.fp32_precision = value
    torch.backends.fp32_precision = before[1]


def seen_by(estimator):
    """Return the settings at every place where a model runs."""
    seen, model = [], build("llama")
    probes = make_probes(model)
    model.register_forward_hook(lambda *_: seen.append(settings()))
    estimator(model, probes)
    assert seen
    return seen


def test_gram_computes_in_full_and_leaves_the_setting_as_it_was(asked):
    before = settings()
    assert all(one == ["ieee", "ieee"] for one in seen_by(Gram()))
    assert settings() == before


def test_it_is_as_the_process_is_set_where_that_is_asked_for(asked):
    before = settings()
    assert all(one == before for one in seen_by(Gram(allow_tf32=True)))


def test_an_error_leaves_the_setting_as_it_was(asked):
    before = settings()
    with pytest.raises(ZeroDivisionError), precision.full_float32():
        raise ZeroDivisionError
    assert settings() == before
