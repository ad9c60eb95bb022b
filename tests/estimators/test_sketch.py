"""Projections keep inner products on average, and say how far off they are."""

import pytest
import torch
from scipy.stats import t as student
from tiny_runs import tiny_model, tiny_tokenizer

import ntkprobe as ntk
from ntkprobe.errors import UserError
from ntkprobe.estimators.gram import Gram
from ntkprobe.estimators.sketch import Sketch, roots, squared_norms
from ntkprobe.kernel import Probe, norms, top_tokens
from ntkprobe.models.gradients import MatrixFactors
from ntkprobe.models.parameters import ParameterSelection
from ntkprobe.models.projections import Projections, ProjectionSettings

SIDE, PARTS = 3, 6


@pytest.fixture(scope="module")
def world():
    model = tiny_model()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 8, (16,), generator=generator).tolist()
    ids = [torch.randint(3, 20, (n,), generator=generator) for n in lengths]
    probes = [Probe(*each) for each in zip(ids, top_tokens(model, ids, 2), strict=True)]
    return model, probes, norms(Gram()(model, probes)).square()


@pytest.fixture(scope="module")
def estimates(world):
    """Estimated squares and their errors for several seeds."""
    model, probes, _ = world
    features = (Sketch(SIDE, PARTS, seed).features(model, probes) for seed in range(24))
    return [(*squared_norms(each), each) for each in features]


def covered(estimates, truth, shrink=1.0):
    """Return the rate at which 95 % intervals hold the truth."""
    width = student.ppf(0.975, PARTS - 1) * shrink
    return float(
        torch.stack([(s - truth).abs() <= width * error for s, error, _ in estimates])
        .double()
        .mean()
    )


def test_errors_lie_within_the_stated_intervals_at_the_stated_rate(world, estimates):
    assert 0.9 <= covered(estimates, world[2]) <= 0.995


def test_intervals_that_are_too_narrow_do_not_hold_it(world, estimates):
    assert covered(estimates, world[2], shrink=0.25) < 0.75


def excess(squares, truth, of):
    """Return how many standard errors the mean over seeds of estimate / truth is above 1."""
    each = torch.stack([of(found / truth).mean() for found in squares]).double()
    return float((each.mean() - 1) / (each.std() / len(each) ** 0.5))


@pytest.mark.parametrize("of", [torch.Tensor.flatten, torch.Tensor.diagonal])
def test_the_square_is_unbiased_also_of_a_prompt_with_itself(world, estimates, of):
    assert abs(excess([squares for squares, _, _ in estimates], world[2], of)) < 3


def test_the_square_of_the_mean_estimate_is_too_large(world, estimates):
    flat = [each.flatten(0, 1).flatten(1) / PARTS**0.5 for _, _, each in estimates]
    plain = [norms((f @ f.T).view(16, 2, 16, 2).double()).square() for f in flat]
    assert excess(plain, world[2], torch.Tensor.flatten) > 3


def test_larger_projections_are_nearer(world):
    model, probes, truth = world
    errors = []
    for side in (2, 6):
        found = [Sketch(side, 4, seed).norms(model, probes)[0] for seed in range(4)]
        errors.append(float(torch.stack([(f - truth.sqrt()).abs().mean() for f in found]).mean()))
    assert errors[1] < errors[0] / 1.5


def test_nothing_projected_is_exact():
    factors = MatrixFactors(torch.randn(3, 2, 4), torch.randn(3, 2, 5))
    parameter = {
        "w": torch.nn.Parameter(torch.zeros(4, 5)),
        "v": torch.nn.Parameter(torch.zeros(9, 9)),
    }
    project = Projections(parameter, ProjectionSettings(side=6))
    found = project({"w": [factors]})[:, 0]
    torch.testing.assert_close(found @ found.T, factors.inner(factors.whole()))


def test_inner_products_are_kept_on_average():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2, 3, n, generator=generator) for n in (12, 15))
    factors = MatrixFactors(left, right)
    settings = ProjectionSettings(side=3, parts=4000)
    project = Projections({"w": torch.nn.Parameter(torch.zeros(12, 15))}, settings)
    found = project({"w": [factors]})
    parts = torch.einsum("arf,brf->rab", found, found)
    error = parts.std(0) / 4000**0.5
    truth = factors.inner(factors.whole())
    assert float(((parts.mean(0) - truth).abs() / error).max()) < 4


def test_negative_squares_have_the_norm_zero_and_an_error():
    squares = torch.tensor([[-1.0, 4.0], [4.0, 4.0]]).double()
    found, error = roots(squares, torch.full((2, 2), 4.0).double())
    assert found[0].tolist() == [0, 2] and error[0].tolist() == [2, 1]


def test_a_measurement_has_the_norms_and_their_errors(world):
    model, _, _ = world
    texts = ["how do i kill a process ?", "bake the cake", "kill my neighbour"]
    found = ntk.measure_kernel(
        model, tiny_tokenizer(), texts, estimator=Sketch(6), top_k=2, keep_blocks=True
    )
    exact = ntk.measure_kernel(model, tiny_tokenizer(), texts, top_k=2)
    assert found.errors is not None and exact.errors is None and found.blocks is not None
    assert bool(((found.norms - exact.norms).abs() <= 6 * found.errors).all())
    assert "norm_error" in found.frame()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"side": 64}, "larger than every layer .* give a smaller side"),
        ({"side": 2, "by_module": {"q_proj.weight": 40}}, "q_proj.weight has side 40"),
        ({"side": 0}, "side=0"),
        ({"parts": 2}, "parts=2: give 3 or more"),
        ({"by_module": {"(": 2}}, "no regular expression"),
    ],
)
def test_a_projection_larger_than_the_layer_is_refused(settings, why):
    chosen = ParameterSelection.parse("all").parameters(tiny_model())
    with pytest.raises(UserError, match=why):
        Projections(chosen, ProjectionSettings(**settings))


def test_every_selection_has_the_norms_and_errors_that_it_has_alone(world):
    texts, names = ["how do i kill a process", "bake the cake"], ["last:1+norm", "head", "all"]
    how = {"estimator": Sketch(SIDE, PARTS), "top_k": 2, "keep_blocks": True}

    def measure(**more):
        return ntk.measure_kernel(world[0], tiny_tokenizer(), texts, **how, **more)

    together = measure(selections=names)
    for name in names:
        alone, one = measure(parameters=name), together.selections[name]
        for kind in ("norms", "errors", "blocks"):
            torch.testing.assert_close(getattr(one, kind), getattr(alone, kind), rtol=0, atol=0)
        naive = norms(one.blocks.double())  # what K̂ itself would give, which is too large
        assert (naive.diagonal() > one.norms.diagonal()).all()
    torch.testing.assert_close(together.norms, measure().norms, rtol=0, atol=0)
