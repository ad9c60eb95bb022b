"""Proposition 1 in numbers, against explicit Jacobians in float64."""

from types import MappingProxyType

import pandas as pd
import pytest
import torch
from architectures import build, ragged_prompts
from training_world import tokenizer

import ntkprobe as ntk
from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import jacobians
from ntkprobe.estimators.gram import stage_state
from ntkprobe.estimators.gram.stage_state import StateFile
from ntkprobe.kernel import Probe, norms
from ntkprobe.measurement.full_vocabulary import Head, full_vocabulary_gradients
from ntkprobe.measurement.proposition1.factors import feature_products, tail_at
from ntkprobe.measurement.proposition1.measurement import measure_terms, right_sides, split_at
from ntkprobe.measurement.stored_parts import StoredParts
from ntkprobe.models.architecture import capture, hooked, layer_output
from ntkprobe.models.parameters import requiring_grad
from ntkprobe.models.precision import Float64Throughout

LAYER, MODELS = 1, ["qwen2-untied", "gemma2"]  # not tied, and tied with a soft cap
PROMPTS = ragged_prompts((3, 2, 5))


def gradients_of_h(model, ids, chosen):
    """G: ∂h/∂θ, `[seq·d, parameters]`, a backward pass a row."""
    with requiring_grad(model, chosen), torch.enable_grad(), capture(model, LAYER) as found:
        model(input_ids=ids[None])
        rows = [
            torch.autograd.grad(value, list(chosen.values()), retain_graph=True, allow_unused=True)
            for value in found[0].flatten()
        ]
    zeros = [torch.zeros_like(p) for p in chosen.values()]
    full = [[z if g is None else g for g, z in zip(row, zeros, strict=True)] for row in rows]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in full])


def tail_jacobian(model, ids):
    """J_g: ∂z/∂h, `[vocab, seq·d]`, by torch.func."""
    with torch.no_grad(), capture(model, LAYER) as found:
        model(input_ids=ids[None])
    states = found[0].detach()

    def logits(h):
        def put(module, inputs, output):
            return h if isinstance(output, torch.Tensor) else (h, *output[1:])

        with hooked([(layer_output(model, LAYER), put)]):
            return model(input_ids=ids[None]).logits[0, -1]

    return torch.func.jacrev(logits)(states).flatten(1).detach()


def whole_jacobian(model, ids, selection):
    """∂z/∂θ, `[vocab, parameters]`, by the definition."""
    rows = jacobians(model, [Probe(ids, torch.arange(48))], selection)
    return torch.cat([rows[name][0] for name in rows], 1)


@pytest.fixture(scope="module", params=MODELS)
def world(request):
    """A model, its explicit Jacobians, and what we measure of it, exactly."""
    model = build(request.param, torch.float64)
    with Float64Throughout():
        below, above = split_at(model, LAYER)
        chosen = below.parameters(model)
        explicit = {
            "G": [gradients_of_h(model, ids, chosen) for ids in PROMPTS],
            "J_g": [tail_jacobian(model, ids) for ids in PROMPTS],
            "below": [whole_jacobian(model, ids, below) for ids in PROMPTS],
            "above": [whole_jacobian(model, ids, above) for ids in PROMPTS],
        }
        terms = measure_terms(model, PROMPTS, LAYER, None, 0)
    names = tuple(ntk.Prompt(str(row), "normal") for row in range(len(PROMPTS)))
    measured = ntk.BoundMeasurement(ntk.PromptSet(names), LAYER, **terms)
    return model, explicit, measured


def aligned(a, b):
    """⟨G′, G⟩ with the last positions on each other."""
    rows = min(len(a), len(b))
    return float((a[-rows:] * b[-rows:]).sum())


def same(found, expected):
    return torch.allclose(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-8)


class TestTerms:
    @pytest.mark.slow
    def test_gradients_of_the_logits_are_the_tails_jacobian_times_those_of_all_positions(
        self, world
    ):
        _, explicit, _ = world
        for j, g, whole in zip(explicit["J_g"], explicit["G"], explicit["below"], strict=True):
            assert torch.allclose(j @ g, whole, atol=1e-10)

    def test_the_last_position_alone_does_not_carry_them(self, world):
        _, explicit, _ = world
        width = len(explicit["G"][0]) // len(PROMPTS[0])
        j, g, whole = explicit["J_g"][0], explicit["G"][0], explicit["below"][0]
        alone = j[:, -width:] @ g[-width:]
        assert float((alone - whole).norm() / whole.norm()) > 0.05

    def test_products_of_feature_gradients_are_those_of_explicit_ones(self, world):
        _, explicit, measured = world
        g = explicit["G"]
        assert same(measured.inner, [[aligned(a, b) for b in g] for a in g])

    def test_norms_of_the_tail_are_those_of_its_explicit_jacobian(self, world):
        _, explicit, measured = world
        matrices = explicit["J_g"]
        assert same(measured.tail_spectral, [torch.linalg.matrix_norm(j, 2) for j in matrices])
        assert same(measured.tail_frobenius, [j.norm() for j in matrices])

    def test_both_kernels_and_the_gradient_of_the_tail_are_explicit_ones(self, world):
        _, explicit, measured = world
        below, above = explicit["below"], explicit["above"]
        frozen = torch.stack([torch.stack([a @ b.T for b in below]) for a in below])
        whole = frozen + torch.stack([torch.stack([a @ b.T for b in above]) for a in above])
        assert same(measured.kernel, norms(frozen.transpose(1, 2)))
        assert same(measured.kernel_all, norms(whole.transpose(1, 2)))
        assert same(measured.tail_gradient, [j.norm() for j in above])

    def test_without_the_tails_parameters_all_else_is_the_same(self, world):
        model, _, measured = world
        with Float64Throughout():
            terms = measure_terms(model, PROMPTS, LAYER, None, 0, tail=False)
        found = ntk.BoundMeasurement(measured.prompts, LAYER, **terms)
        rows, every = found.frame(), measured.frame()
        assert set(every.columns) - set(rows.columns) == {"kernel_all", "step_2"}
        pd.testing.assert_frame_equal(rows, every[rows.columns], rtol=1e-9)
        assert list(found.prompt_frame()) == list(measured.prompt_frame())[:-1]

    @pytest.mark.slow
    def test_random_directions_agree_within_their_standard_errors(self, world):
        model, _, measured = world
        chosen = split_at(model, LAYER)[0].parameters(model)
        with Float64Throughout():
            found = feature_products(model, PROMPTS, LAYER, chosen, directions=64)
        assert float(((found.inner - measured.inner) / found.error).abs().max()) < 4
        assert float((found.error / measured.inner.diagonal().max()).max()) < 0.2


class TestBounds:
    def test_step_2_and_the_corrected_bound_hold_for_every_pair(self, world):
        rows = world[2].frame()
        assert (rows["kernel_all"] <= rows["step_2"]).all()
        assert (rows["kernel"] <= rows["local"]).all()
        assert (rows["local"] <= rows["corrected"] * (1 + 1e-12)).all()

    def test_for_a_prompt_with_itself_the_printed_bound_is_the_corrected_one(self, world):
        rows = world[2].frame().query("observed == updated")
        assert (rows["printed"] / rows["corrected"] - 1).abs().max() < 1e-12

    def test_in_the_linear_case_the_printed_bound_fails_and_the_corrected_one_holds(self):
        generator = torch.Generator().manual_seed(0)
        linear, tail = (
            torch.randn(rows, 6, generator=generator, dtype=torch.double) for rows in (240, 12)
        )
        h = torch.randn(40, 6, generator=generator, dtype=torch.double)
        g = (h @ linear.T).view(40, 6, 40)  # vec(G) = T h, exactly: A2 with ε = 0
        gradients = tail @ g
        kernel = norms(torch.einsum("avp,bwp->avbw", gradients, gradients))
        sides = right_sides(
            torch.linalg.matrix_norm(tail, 2) ** 2, torch.einsum("aip,bip->ab", g, g)
        )
        assert float((kernel > sides["printed"]).double().mean()) > 0.3
        assert not bool((kernel > sides["corrected"]).any())

    def test_of_the_last_position_alone_the_bound_can_fail(self):
        model, ids = build("qwen2-tied", torch.float64), torch.arange(16)
        model.model.layers[1].self_attn.o_proj.weight.data *= 30  # the tail reads other positions
        with Float64Throughout():
            below = split_at(model, LAYER)[0]
            g, j = gradients_of_h(model, ids, below.parameters(model)), tail_jacobian(model, ids)
            whole = whole_jacobian(model, ids, below)
        width = len(g) // len(ids)

        def bound(j, g):
            return torch.linalg.matrix_norm(j, 2) ** 2 * g.norm() ** 2

        kernel = (whole @ whole.T).norm()
        assert bound(j[:, -width:], g[-width:]) < kernel <= bound(j, g)


class TestMeasuring:
    def test_texts_give_every_pair_a_row_and_leave_the_model_as_it_was(self):
        model, speech = build("qwen2-tied", vocab_size=300), tokenizer()
        prompts = ntk.PromptSet.from_texts({"toxic": ["a b", "cd"], "normal": ["e"]})
        before = model.model.layers, model.lm_head, model.config.num_hidden_layers
        measured = ntk.measure_bounds(model, speech, prompts, layer=1, directions=8, template="raw")
        assert measured.frame().shape[0] == 9 and not measured.frame().isna().any().any()
        assert list(measured.prompt_frame()["group"]) == ["toxic", "toxic", "normal"]
        assert before == (model.model.layers, model.lm_head, model.config.num_hidden_layers)

    def test_what_was_not_estimated_has_no_error_and_what_was_has_one(self, world):
        assert not world[2].inner_error.any()
        model = build("qwen2-tied", vocab_size=300)
        given = dict(layer=1, directions=8, template="raw")
        found = ntk.measure_bounds(model, tokenizer(), ["a b"], **given)
        assert (found.inner_error > 0).all()

    @pytest.mark.parametrize(
        "settings, why", [({"layer": 9}, "layer 9 of 2"), ({"directions": 1}, "2 or more")]
    )
    def test_a_mistake_is_one_clear_line(self, settings, why):
        given = {"layer": 1, "template": "raw"} | settings
        with pytest.raises(UserError, match=why):
            ntk.measure_bounds(build("llama", vocab_size=300), tokenizer(), ["a"], **given)

    @pytest.mark.slow
    def test_gradients_of_no_tied_matrix_leave_its_lookups_out(self):
        model = build("qwen2-tied", torch.float64)
        with Float64Throughout():
            tied, apart = (full_vocabulary_gradients(model, PROMPTS, s) for s in ("head", "last:1"))
        assert bool((tied > 0).all()) and not torch.allclose(tied, apart)

    def test_the_tail_of_a_deeper_layer_is_another(self):
        model = build("llama", torch.float64)
        tails = [tail_at(model, Head.of(model, {}), PROMPTS[0], layer).spectral for layer in (1, 2)]
        assert tails[0] != tails[1]


class Stopped(Exception):
    """Stands for a kill."""


class TestStopping:
    """A model of three blocks, and a measurement that is stopped."""

    GIVEN = MappingProxyType({"layer": 2, "directions": 40, "template": "raw"})
    PROMPTS = ("a b", "cdef", "e")

    @pytest.fixture
    def model(self, monkeypatch):
        monkeypatch.setattr(stage_state, "SECONDS_APART", 0)
        return build("qwen2-tied", torch.float64, vocab_size=300, num_hidden_layers=3)

    def measure(self, model, folder, **settings):
        given = {**self.GIVEN, **settings}
        return ntk.measure_bounds(model, tokenizer(), self.PROMPTS, partial_dir=folder, **given)

    @pytest.mark.parametrize("tail", [True, pytest.param(False, marks=pytest.mark.slow)])
    def test_in_parts_it_gives_the_numbers_of_one_pass(self, model, tmp_path, tail):
        with Float64Throughout():
            apart = self.measure(model, tmp_path / "parts", tail=tail).frame()
            whole = self.measure(model, None, tail=tail).frame()
        assert len(list(tmp_path.glob("parts/kernel-*"))) == 1
        pd.testing.assert_frame_equal(apart, whole, rtol=1e-9)

    @pytest.mark.parametrize("kind", [pytest.param("tail", marks=pytest.mark.slow), "directions"])
    def test_stopped_anywhere_it_goes_on_and_repeats_one_part_at_most(
        self, model, tmp_path, monkeypatch, kind
    ):
        whole = self.measure(model, tmp_path / "whole").frame()
        done, get = [], StoredParts.get

        def counted(parts, name, compute):
            def computed():
                if stop and name.startswith(kind) and [n for n in done if n.startswith(kind)]:
                    raise Stopped
                done.append(name)
                return compute()

            return get(parts, name, computed)

        monkeypatch.setattr(StoredParts, "get", counted)
        stop = True
        with pytest.raises(Stopped):
            self.measure(model, tmp_path / "parts")
        stop = False
        found = self.measure(model, tmp_path / "parts").frame()
        assert len(done) == len(set(done)) == len(list(tmp_path.glob("whole/*.safetensors")))
        pd.testing.assert_frame_equal(found, whole, rtol=1e-12)

    @pytest.mark.parametrize("states", [1, 3])
    def test_stopped_between_two_blocks_the_kernel_goes_on_there(
        self, model, tmp_path, monkeypatch, states
    ):
        whole, saved, save = self.measure(model, None).frame(), [], StateFile.save

        def stopping(file, state):
            save(file, state)
            saved.append(state.stage)
            if len(saved) == states:
                raise Stopped

        monkeypatch.setattr(StateFile, "save", stopping)
        with pytest.raises(Stopped):
            self.measure(model, tmp_path / "parts")
        found = self.measure(model, tmp_path / "parts").frame()
        assert saved == [2, 1, 0, -1]  # each once
        assert not list(tmp_path.glob("parts/*.state"))
        pd.testing.assert_frame_equal(found, whole, rtol=1e-9)

    def test_parts_of_another_measurement_are_refused(self, model, tmp_path):
        self.measure(model, tmp_path)
        for setting, value in {"layer": 1, "directions": 41, "seed": 1, "tail": False}.items():
            with pytest.raises(UserError, match=f"{setting} = .*, now it is {value}: take another"):
                self.measure(model, tmp_path, **{setting: value})
        model.config.rms_norm_eps *= 10
        with pytest.raises(UserError, match="measured with config = "):
            self.measure(model, tmp_path)
        model.config.rms_norm_eps /= 10
        next(iter(model.parameters())).data[0, 0] += 1e-9
        with pytest.raises(UserError, match="measured with weights = "):
            self.measure(model, tmp_path)
