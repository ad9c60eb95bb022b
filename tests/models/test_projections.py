"""Features have one shape, whichever parameters a sample's values depend on."""

import torch

from ntkprobe.models.gradients import MatrixFactors, WholeGradients
from ntkprobe.models.projections import Projections, ProjectionSettings


def test_a_parameter_that_nothing_depends_on_has_features_of_zero():
    parameters = {n: torch.nn.Parameter(torch.zeros(6, 9)) for n in ("used", "unused")}
    project = Projections(parameters, ProjectionSettings(side=2, parts=3))
    factors = MatrixFactors(torch.randn(4, 5, 6), torch.randn(4, 5, 9))
    found = project({"used": [factors], "unused": []})
    zeros = WholeGradients(torch.zeros(4, 6, 9))
    torch.testing.assert_close(found, project({"used": [factors], "unused": [zeros]}))
    assert found.shape == (4, 3, project.size) and bool(found.any())


def test_other_salts_and_seeds_are_other_projections():
    parameter = {"w": torch.nn.Parameter(torch.zeros(6, 9))}
    factors = {"w": [MatrixFactors(torch.randn(1, 5, 6), torch.randn(1, 5, 9))]}

    def features(salt="", **settings):
        return Projections(parameter, ProjectionSettings(side=2, **settings), salt)(factors)

    assert torch.equal(features(), features())
    assert not torch.equal(features(), features("100"))
    assert not torch.equal(features(), features(seed=1))
