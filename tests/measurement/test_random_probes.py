import pytest
import torch
from architectures import VOCABULARY, build, ragged_prompts

from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense
from ntkprobe.kernel import Probe, norms
from ntkprobe.measurement.random_probes import estimate, random_probe_norms, random_probes

SEEDS = 800


@pytest.fixture(scope="module")
def whole():
    """Return K of three prompts over all logits, `[3, vocab, 3, vocab]`."""
    everything = torch.arange(VOCABULARY)
    return Dense()(build("qwen2-tied"), [Probe(ids, everything) for ids in ragged_prompts()[:3]])


def blocks(whole, count, seed):
    """Return Ω′ᵀ K Ω, which an estimator gives for these probes."""
    probes = random_probes(ragged_prompts()[:3], VOCABULARY, count, seed)
    signs = torch.stack([probe.cotangents for probe in probes]).double()
    return torch.einsum("aiv,avbw,bjw->aibj", signs, whole, signs)


@pytest.fixture(scope="module")
def estimates(whole):
    found = [estimate(blocks(whole, 8, seed)) for seed in range(SEEDS)]
    return torch.stack([e.squared for e in found]), torch.stack([e.error for e in found])


class TestEstimate:
    def test_its_mean_over_seeds_is_the_square_of_the_norm(self, whole, estimates):
        squared = estimates[0]
        deviation = (squared.mean(0) - norms(whole).square()) / (squared.std(0) / SEEDS**0.5)
        assert float(deviation.abs().max()) < 3.5

    def test_one_set_of_probes_for_both_prompts_is_biased_on_a_prompt_with_itself(self, whole):
        shared = torch.stack(
            [blocks(whole, 8, s).transpose(1, 2).square().mean((-1, -2)) for s in range(SEEDS)]
        )
        ratio = (shared.mean(0) / norms(whole).square()).diagonal()
        assert float(ratio.min()) > 1.3

    def test_the_standard_error_is_the_spread_over_seeds(self, estimates):
        squared, error = estimates
        ratio = error.square().mean(0).sqrt() / squared.std(0)
        assert 0.9 < float(ratio.min()) and float(ratio.max()) < 1.35

    def test_the_error_falls_as_probes_are_added(self, whole):
        few, many = (estimate(blocks(whole, count, 0)) for count in (4, 256))
        assert bool((many.norm_error < few.norm_error).all())

    def test_many_probes_come_near_the_norm(self, whole):
        found = estimate(blocks(whole, 1000, 0))
        assert bool(((found.norms - norms(whole)).abs() < 4 * found.norm_error).all())


class TestProbes:
    def test_each_prompt_has_its_own(self):
        first, second = random_probes([torch.tensor([1])] * 2, VOCABULARY, 4)
        assert not torch.equal(first.cotangents, second.cotangents)

    def test_a_seed_repeats_them(self):
        runs = [random_probes(ragged_prompts(), VOCABULARY, 4, seed=3) for _ in range(2)]
        assert all(torch.equal(a.cotangents, b.cotangents) for a, b in zip(*runs, strict=True))

    def test_too_few_to_tell_an_error_are_refused(self):
        with pytest.raises(UserError, match="give 3 or more"):
            random_probes(ragged_prompts(), VOCABULARY, 2)

    def test_the_estimators_blocks_are_the_weighted_kernels(self, whole):
        model, prompts = build("qwen2-tied"), ragged_prompts()[:3]
        found = random_probe_norms(model, prompts, probes=5, seed=1, estimator=Dense())
        expected = estimate(blocks(whole, 5, 1))
        assert torch.allclose(found.squared, expected.squared, rtol=1e-4)
