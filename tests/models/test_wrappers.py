"""What a trainer puts around a model changes no measurement: it is taken off, or refused."""

import pytest
import torch
from accelerate import Accelerator
from architectures import build, ragged_prompts
from fault_workers import SETTINGS
from tiny_runs import tiny_model, tiny_tokenizer
from trainer_runs import PROMPTS, adapter, train

import ntkprobe as ntk
from ntkprobe.errors import UserError
from ntkprobe.estimators.gram import Gram
from ntkprobe.kernel import Probe
from ntkprobe.measurement.influence import read_steps
from ntkprobe.models.generation import generate_answers
from ntkprobe.models.wrappers import computing_plainly, inner_model
from ntkprobe.refusal import score_phrases
from ntkprobe.training.callbacks import StepCallback, trained
from ntkprobe.watcher import measure_run

IDS = torch.arange(1, 7)[None]
TEXTS = ["how do i kill a python process ?", "kill my neighbour please"]


def prepared(model):
    """Put a model into the autocast that a Trainer with bf16=True puts around it."""
    Accelerator._shared_state = {} if hasattr(Accelerator, "_shared_state") else None
    return Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model).eval()


@pytest.fixture
def rounding(reset_accelerate):
    return prepared(tiny_model())


@pytest.fixture
def reset_accelerate():
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_prepared_model_computes_what_its_weights_say_while_the_block_lasts(rounding):
    plain = tiny_model()(IDS).logits
    assert not torch.equal(rounding(IDS).logits, plain)  # what would be measured
    with computing_plainly(rounding):
        assert torch.equal(rounding(IDS).logits, plain)
    assert not torch.equal(rounding(IDS).logits, plain)  # training goes on as before


def test_measurements_of_a_prepared_model_are_those_of_its_weights(rounding):
    tokenizer = tiny_tokenizer()
    for measure, values in (
        (ntk.measure_kernel, lambda found: found.norms),
        (ntk.measure_refusal, lambda found: found.frame()["log_probability"].to_numpy()),
    ):
        options = {} if measure is ntk.measure_kernel else {"generate": False}
        ours, right = (
            torch.as_tensor(values(measure(model, tokenizer, TEXTS, **options)))
            for model in (rounding, tiny_model())
        )
        assert torch.allclose(ours, right, rtol=1e-6)


CALLS = {
    "estimator": lambda model: Gram()(model, [Probe(IDS[0], IDS[0, :2])], "all"),
    "phrases": lambda model: score_phrases(model, [IDS[0]], [(3,)]),
    "answers": lambda model: generate_answers(
        model, tiny_tokenizer(), [IDS[0]], max_new_tokens=1, batch_size=1
    ),
}
MEASURES = {
    "kernel": lambda model: ntk.measure_kernel(model, tiny_tokenizer(), TEXTS),
    "refusal": lambda model: ntk.measure_refusal(model, tiny_tokenizer(), TEXTS),
    "activations": lambda model: ntk.measure_activations(model, tiny_tokenizer(), TEXTS),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_called_directly_refuses_a_prepared_model(call, rounding):
    with pytest.raises(UserError, match="mixed precision"):
        call(rounding)
    call(tiny_model())


@pytest.mark.parametrize("call", [*CALLS.values(), *MEASURES.values()], ids=[*CALLS, *MEASURES])
def test_every_public_function_refuses_autocast_and_wrappers(call):
    model = tiny_model()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match="autocast"):
        call(model)
    with pytest.raises(UserError, match="wrapped in DataParallel: give what is inside"):
        call(torch.nn.DataParallel(model))


def test_the_default_dtype_of_the_process_changes_nothing():
    tokenizer, model = tiny_tokenizer(), tiny_model()
    right = ntk.measure_kernel(model, tokenizer, TEXTS).norms
    refusal = ntk.measure_refusal(model, tokenizer, TEXTS, generate=False).frame()
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            found = ntk.measure_kernel(model, tokenizer, TEXTS).norms
            again = ntk.measure_refusal(model, tokenizer, TEXTS, generate=False).frame()
            assert torch.allclose(torch.as_tensor(found), torch.as_tensor(right), rtol=1e-6)
            assert (again["log_probability"] - refusal["log_probability"]).abs().max() < 1e-6
    finally:
        torch.set_default_dtype(before)


def test_wrappers_are_looked_through():
    model = build("llama")
    assert inner_model(torch.nn.DataParallel(torch.compile(model))) is model
    assert trained(torch.nn.DataParallel(model)).keys() == trained(model).keys()
    assert len(ragged_prompts()) > 1


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_model, adapter])
def test_a_callback_under_bf16_measures_what_is_in_the_checkpoint(make, tmp_path, reset_accelerate):
    tiny_model().save_pretrained(tmp_path / "base")
    callback = ntk.TrajectoryCallback(PROMPTS, settings=SETTINGS)
    train(tmp_path / "run", make(), callback, StepCallback(), bf16=True, max_steps=2)
    options = {"model": str(tmp_path / "base")} if make is adapter else {}
    measure_run(PROMPTS, tmp_path / "disk", ckpt_dir=tmp_path / "run", settings=SETTINGS, **options)
    ours, disk = (ntk.Trajectory(tmp_path / name) for name in ("run-ntk", "disk"))
    assert (
        ours.settings["trained_in"] == "bfloat16" and ours.settings["model"]["dtype"] == "float32"
    )
    memory, right = (run.kernel().query("step == 2")["norm"].to_numpy() for run in (ours, disk))
    assert abs(memory / right - 1).max() < 1e-4
    steps = list(read_steps(tmp_path / "run-steps"))
    assert len(steps) == 2 and all(v.dtype == torch.float32 for v in steps[0][1].values())
