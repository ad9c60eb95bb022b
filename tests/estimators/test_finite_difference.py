import warnings
from collections.abc import Iterator

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    DENSE_FAMILIES,
    build,
    make_probes,
    worst_block_error,
)

from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.finite_difference import FiniteDifference, shifted
from ntkprobe.kernel import Probe
from ntkprobe.models.precision import Float64Throughout

UNIT = FiniteDifference(step="unit")


def unchecked(estimator, model, probes):
    """Return all blocks without the comparison of two steps, which costs as much as these few."""
    columns = torch.stack(list(estimator.columns(model, probes)), -1)
    return columns.unflatten(-1, (len(probes), -1))


class TestAgreement:
    # Largest error of a sweep over all architectures: 6e-8 in float64, 1e-2 in float32.
    rtol_float64, rtol_float32 = 2e-7, 3e-2

    @pytest.fixture(autouse=True)
    def no_warnings(self) -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            yield

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_blocks_are_the_definitions_in_float64(self, name):
        model = build(name, torch.float64)
        probes = make_probes(model, k=2, lengths=(5, 3, 1))
        with Float64Throughout():
            found = unchecked(FiniteDifference(1e-5, "unit"), model, probes)
            assert worst_block_error(found, Dense()(model, probes)) <= self.rtol_float64

    # Not the mixtures of experts: a step may flip which expert a token goes to.
    @pytest.mark.parametrize("name", DENSE_FAMILIES)
    def test_unit_steps_of_a_thousandth_are_close_in_float32(self, name):
        model = build(name)
        probes = make_probes(model, k=2, lengths=(5, 3, 1))
        assert worst_block_error(UNIT(model, probes), Dense()(model, probes)) <= self.rtol_float32


class TestStep:
    def error(self, eps):
        model = build("qwen2-tied", torch.float64)
        probes = make_probes(model, k=2, lengths=(5, 3))
        with Float64Throughout():
            found = unchecked(FiniteDifference(eps, "unit"), model, probes)
            return worst_block_error(found, Dense()(model, probes))

    def test_error_falls_with_the_square_of_the_step(self):
        assert self.error(1e-3) / self.error(1e-4) == pytest.approx(100, rel=0.1)

    def test_a_step_below_float32s_rounding_is_noise(self):
        model = build("qwen2-tied")
        probes = make_probes(model, k=2)
        with pytest.warns(UserWarning, match="differ by"):
            found = FiniteDifference(1e-8, "unit")(model, probes)
        assert worst_block_error(found, Dense()(model, probes)) > 1

    def test_where_any_difference_is_tolerated_none_is_measured(self, monkeypatch):
        def never(*_):
            raise AssertionError("steps were compared")

        monkeypatch.setattr(FiniteDifference, "disagreement", never)
        model = build("qwen2-tied")
        probes = make_probes(model, k=2)
        found = FiniteDifference(1e-3, "unit", tolerance=float("inf"))(model, probes)
        assert worst_block_error(found, Dense()(model, probes)) <= 3e-2
        with pytest.raises(AssertionError, match="compared"):
            FiniteDifference(1e-3, "unit")(model, probes)

    def test_the_papers_raw_step_fails_where_gradients_are_large_and_warns(self):
        model = build("qwen2-tied")
        probes = make_probes(model, k=2)
        with pytest.warns(UserWarning, match="raw steps ε = 0.001 and ε/2 differ by"):
            found = FiniteDifference()(model, probes)
        assert worst_block_error(found, Dense()(model, probes)) > 0.1

    def test_raw_and_unit_steps_are_the_same_where_the_gradient_has_length_one(self):
        model = build("llama", torch.float64)
        probes = make_probes(model, k=1)[:1]
        with torch.no_grad():
            length = float(Dense()(model, probes, "head").sqrt())
        raw = next(FiniteDifference(1e-3 / length).columns(model, probes, "head"))
        unit = next(FiniteDifference(1e-3, "unit").columns(model, probes, "head"))
        assert raw.item() == pytest.approx(unit.item(), rel=1e-9)

    @pytest.mark.parametrize("settings", [{"eps": 0.0}, {"eps": -1.0}, {"step": "relative"}])
    def test_steps_without_a_meaning_are_refused(self, settings):
        with pytest.raises(UserError, match="choose"):
            FiniteDifference(**settings)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_refused(self, dtype):
        model = build("llama", dtype)
        with pytest.raises(UserError, match="load the checkpoint in float32"):
            FiniteDifference()(model, [Probe(torch.tensor([1, 2]), torch.tensor([3]))])


class TestColumns:
    @pytest.mark.slow
    def test_batches_of_observed_prompts_change_nothing(self):
        model = build("gpt_neox", torch.float64)
        probes = make_probes(model, k=2)
        # What transformers pins to float32 rounds by the batch, which a step divides by its length.
        with Float64Throughout():
            one, all_at_once = (
                FiniteDifference(step="unit", batch_size=b)(model, probes) for b in (1, 9)
            )
        assert worst_block_error(one, all_at_once) < 1e-7

    def test_chosen_columns_are_those_of_the_whole(self):
        model = build("llama")
        probes = make_probes(model, k=2)
        whole = UNIT(model, probes).flatten(2)
        some = torch.stack(list(UNIT.columns(model, probes, which=[5, 0])), -1)
        assert torch.equal(some, whole[..., [5, 0]])


class TestRestoring:
    def snapshot(self, model):
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    def test_parameters_come_back_bit_for_bit(self):
        model = build("llama")
        before = self.snapshot(model)
        UNIT(model, make_probes(model, k=2))
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

    def test_parameters_come_back_after_an_exception(self):
        model = build("llama")
        before, parameters = self.snapshot(model), list(model.parameters())
        with (
            pytest.raises(KeyError),
            shifted(parameters, [torch.ones_like(p) for p in parameters], 1.0),
        ):
            raise KeyError
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

    def test_adding_and_subtracting_would_not_bring_them_back(self):
        model = build("llama")
        weight = model.lm_head.weight.detach()
        before, w = weight.clone(), torch.randn_like(weight)
        weight.add_(w, alpha=1e-3).add_(w, alpha=-1e-3)
        assert not torch.equal(weight, before)

    def test_which_parameters_require_a_gradient_is_left_as_it_was(self):
        model = build("llama").requires_grad_(False)
        UNIT(model, make_probes(model, k=1))
        assert not any(p.requires_grad for p in model.parameters())
