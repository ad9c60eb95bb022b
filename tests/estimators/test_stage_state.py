"""A kernel that was stopped goes on where its last state was stored, and gives the same numbers."""

from dataclasses import replace

import pytest
import torch
from architectures import build, ragged_prompts, with_lora
from safetensors import SafetensorError
from safetensors.torch import save_file

from ntkprobe.errors import UserError
from ntkprobe.estimators.gram import Gram, algorithm, stage_state
from ntkprobe.estimators.gram.microbatches import MicroBatch
from ntkprobe.estimators.gram.stage_state import StageState, StateFile
from ntkprobe.kernel import Probe

PROMPTS = ragged_prompts((3, 5, 2, 4))


class Stopped(Exception):
    """Stands for a kill."""


def probes(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [Probe(ids, torch.randperm(48, generator=generator)[:3]) for ids in PROMPTS]


def model_of(family="llama", **settings):
    return build(family, torch.float64, num_hidden_layers=4, **settings)


@pytest.fixture
def every_stage(monkeypatch):
    """A state is stored after every stage."""
    monkeypatch.setattr(stage_state, "SECONDS_APART", 0)


@pytest.fixture
def stages_run(monkeypatch):
    """The stages run, in order, in all micro-batches."""
    run, factors = [], MicroBatch.factors

    def counted(batch, stage):
        run.append(stage)
        return factors(batch, stage)

    monkeypatch.setattr(MicroBatch, "factors", counted)
    return run


def stop_after(monkeypatch, states, model, given, estimator):
    """Stop a call when it has stored this many states."""
    stored, save = [], StateFile.save

    def stopping(file, state):
        save(file, state)
        stored.append(state.stage)
        if len(stored) == states:
            raise Stopped

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(StateFile, "save", stopping)
        estimator(model, given)


@pytest.mark.usefixtures("every_stage")
class TestGoingOn:
    """Four blocks, a state after each."""

    @pytest.mark.parametrize("states", [1, 2, 4])
    @pytest.mark.parametrize("family", ["llama", "mixtral", "qwen2-tied"])
    def test_stopped_after_any_stage_the_rest_is_run_and_the_kernel_is_the_same(
        self, family, states, monkeypatch, tmp_path, stages_run
    ):
        model, path = model_of(family), tmp_path / "state"
        whole = Gram(batch_size=2)(model, probes())
        every = list(dict.fromkeys(stages_run))
        estimator = Gram(batch_size=2, state_file=path)
        stop_after(monkeypatch, states, model, probes(), estimator)
        stages_run.clear()
        torch.testing.assert_close(estimator(model, probes()), whole, rtol=1e-12, atol=0)
        assert list(dict.fromkeys(stages_run)) == [every[0], *every[states:]]
        assert not path.exists()

    def test_it_goes_on_with_other_micro_batches(self, monkeypatch, tmp_path, stages_run):
        model, given = model_of(), probes()
        estimator = Gram(batch_size=4, state_file=tmp_path / "state")
        stop_after(monkeypatch, 2, model, given, estimator)
        stages_run.clear()
        found = replace(estimator, batch_size=1)(model, given)
        assert set(stages_run) == {4, 2, 1, 0, -1}
        torch.testing.assert_close(found, Gram()(model, given), rtol=1e-10, atol=1e-12)

    def test_every_selection_has_its_own_sum(self, monkeypatch, tmp_path):
        model, given, selections = model_of(), probes(), ["all", "last:1", "embed"]
        estimator = Gram(state_file=tmp_path / "state")

        def call(model, probes):
            return estimator.by_selection(model, probes, selections)

        stop_after(monkeypatch, 3, model, given, call)
        whole = Gram().by_selection(model, given, selections)
        for name, found in call(model, given).items():
            torch.testing.assert_close(found, whole[name], rtol=1e-12, atol=0)

    def test_where_blocks_share_a_matrix_no_state_is_stored(self, tmp_path, monkeypatch):
        model, stored = model_of(), []
        layers = model.model.layers
        layers[0].mlp.up_proj.weight = layers[2].mlp.up_proj.weight
        monkeypatch.setattr(StateFile, "save", lambda file, state: stored.append(state.stage))
        found = Gram(state_file=tmp_path / "state")(model, probes())
        torch.testing.assert_close(found, Gram()(model, probes()), rtol=1e-12, atol=0)
        assert stored == [3, 2, -1]  # between the two blocks it would be incomplete

    def test_gradients_formed_by_autograd_go_on_as_well(self, monkeypatch, tmp_path):
        model, given = model_of(), probes()
        no_rule = {"model.layers.0.mlp.up_proj.weight", "model.layers.3.self_attn.q_proj.weight"}
        plan, made = algorithm.plan_backward, []

        def planned(*args):
            made.append(plan(*args).with_fallbacks(no_rule))
            return made[-1]

        monkeypatch.setattr(algorithm, "plan_backward", planned)
        estimator = Gram(state_file=tmp_path / "state")
        stop_after(monkeypatch, 2, model, given, estimator)
        found = estimator(model, given)
        assert made[-1].handled["model.layers.0.mlp.up_proj.weight"] == "autograd"
        torch.testing.assert_close(found, Gram()(model, given), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("every_stage")
@pytest.mark.parametrize(
    "other", ["weights", "config", "prompts", "tokens", "selection", "dtype", "hook"]
)
def test_the_state_of_another_call_is_not_used(other, monkeypatch, tmp_path, stages_run):
    model, path = model_of(), tmp_path / "state"
    stop_after(monkeypatch, 2, model, probes(), Gram(state_file=path))
    given, selection, dtype = probes(), "all", None
    if other == "weights":
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
    elif other == "config":
        model.config.rms_norm_eps *= 10
    elif other == "prompts":
        given[0] = Probe(PROMPTS[0].flip(0), given[0].tokens)
    elif other == "tokens":
        given[3] = probes(seed=1)[3]
    elif other == "selection":
        selection = "last:4"
    elif other == "hook":
        block = model.model.layers[1]
        block.register_forward_hook(lambda module, inputs, output: output * 1.1)
    else:
        dtype = torch.float32
    stages_run.clear()
    found = Gram(state_file=path, dtype=dtype)(model, given, selection)
    assert 3 in stages_run
    torch.testing.assert_close(found, Gram(dtype=dtype)(model, given, selection))


def adapted(scale_of_b=0.0):
    model = with_lora(model_of())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= scale_of_b
    return model


def rescale(model, factor):
    for module in model.modules():
        for name in getattr(module, "scaling", ()) if hasattr(module, "lora_A") else ():
            module.scaling[name] *= factor


@pytest.mark.usefixtures("every_stage")
class TestAdapterSettings:
    """They are in no weight, and change no logit while the adapter's B is zero."""

    @pytest.mark.parametrize("factor", [1, 3])
    def test_the_state_of_another_scaling_is_not_used(
        self, factor, monkeypatch, tmp_path, stages_run
    ):
        model, estimator = adapted(), Gram(state_file=tmp_path / "state")

        def call(model, given):
            return estimator(model, given, "lora")

        stop_after(monkeypatch, 2, model, probes(), call)
        rescale(model, factor)
        whole = Gram()(model, probes(), "lora")
        stages_run.clear()
        torch.testing.assert_close(call(model, probes()), whole, rtol=1e-12, atol=0)
        assert (3 in stages_run) == (factor != 1)

    def test_the_state_with_an_adapter_is_not_used_without_it(
        self, monkeypatch, tmp_path, stages_run
    ):
        model, estimator = adapted(1e-5), Gram(state_file=tmp_path / "state")
        stop_after(monkeypatch, 2, model, probes(), estimator)
        with model.disable_adapter():
            whole = Gram()(model, probes())
            stages_run.clear()
            torch.testing.assert_close(estimator(model, probes()), whole, rtol=1e-12, atol=0)
        assert 3 in stages_run


@pytest.mark.usefixtures("every_stage")
def test_a_state_in_lower_precision_is_not_used_in_full_precision(
    monkeypatch, tmp_path, stages_run
):
    model, path = model_of(), tmp_path / "state"
    stop_after(monkeypatch, 2, model, probes(), Gram(state_file=path, allow_tf32=True))
    stages_run.clear()
    Gram(state_file=path)(model, probes())
    assert 3 in stages_run


@pytest.mark.usefixtures("every_stage")
def test_a_kernel_in_bfloat16_goes_on(monkeypatch, tmp_path, stages_run):
    model, estimator = model_of(), Gram(state_file=tmp_path / "state", dtype=torch.bfloat16)
    whole = replace(estimator, state_file=None)(model, probes())
    stop_after(monkeypatch, 2, model, probes(), estimator)
    stages_run.clear()
    torch.testing.assert_close(estimator(model, probes()), whole)
    assert 3 not in stages_run


@pytest.mark.usefixtures("every_stage")
class TestFiles:
    """Nothing about the file of the state costs a kernel, or another file."""

    @pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("no space")])
    def test_a_state_that_cannot_be_written_costs_no_kernel(
        self, error, monkeypatch, tmp_path, caplog
    ):
        def full(*_):
            raise error

        monkeypatch.setattr(stage_state, "write_tensors", full)
        found = Gram(state_file=tmp_path / "state")(model_of(), probes())
        assert torch.equal(found, Gram()(model_of(), probes()))
        assert "no state of the kernel" in caplog.text

    def test_a_folder_that_cannot_be_made_costs_no_kernel(self, tmp_path):
        (tmp_path / "file").write_text("")
        found = Gram(state_file=tmp_path / "file" / "state")(model_of(), probes())
        assert torch.equal(found, Gram()(model_of(), probes()))

    def test_a_path_may_be_a_text(self, monkeypatch, tmp_path):
        model, estimator = model_of(), Gram(state_file=str(tmp_path / "new" / "state"))
        stop_after(monkeypatch, 2, model, probes(), estimator)
        assert (tmp_path / "new" / "state").is_file()
        torch.testing.assert_close(estimator(model, probes()), Gram()(model, probes()))

    def test_a_folder_is_refused_before_anything_is_computed(self, tmp_path):
        with pytest.raises(UserError, match="is a folder"):
            Gram(state_file=tmp_path)

    @pytest.mark.parametrize("kind", ["notes", "weights", "half"])
    def test_a_file_that_is_no_state_is_refused_and_kept(self, kind, monkeypatch, tmp_path):
        path, model = tmp_path / "file", model_of()
        if kind == "notes":
            path.write_text("mine")
        elif kind == "weights":
            save_file({"weight": torch.zeros(3)}, path)
        else:
            stop_after(monkeypatch, 2, model, probes(), Gram(state_file=path))
            path.write_bytes(path.read_bytes()[:-100])
        before = path.read_bytes()
        with pytest.raises(UserError, match="state of a kernel"):
            Gram(state_file=path)(model, probes())
        assert path.read_bytes() == before

    def test_telling_calls_apart_holds_no_activations(self, monkeypatch, tmp_path):
        with_gradient, read = [], Probe.read

        def watched(probe, logits):
            with_gradient.append(logits.requires_grad)
            return read(probe, logits)

        file = StateFile(tmp_path / "state", model_of(), probes())
        monkeypatch.setattr(Probe, "read", watched)
        file.save(StageState(0, [], {}))
        assert with_gradient == [False] * len(PROMPTS)


@pytest.mark.parametrize("named", [True, False])
def test_a_state_is_stored_only_in_a_file_that_is_named_and_after_some_time(
    named, monkeypatch, tmp_path
):
    if not named:
        monkeypatch.setattr(stage_state, "SECONDS_APART", 0)
    monkeypatch.setattr(StateFile, "save", lambda *_: pytest.fail("a state was stored"))
    Gram(state_file=tmp_path / "state" if named else None)(model_of(), probes())
