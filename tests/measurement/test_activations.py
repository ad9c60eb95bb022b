"""Activations: what decoder blocks hold at the last position, measured once per checkpoint."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TEXTS, lora_run, measure_command, tiny_model, tiny_tokenizer

from ntkprobe import PromptSet, Trajectory, UserError, measure_activations
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.tiny import files as embedded
from ntkprobe.watcher import ActivationSettings, MeasureSettings, measure_run

PROMPTS = PromptSet.from_texts(TEXTS)
ONLY = MeasureSettings(
    kernel=None, refusal=None, activations=ActivationSettings(), load=LoadSettings(device="cpu")
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return lora_run(tmp_path_factory.mktemp("source"), steps=(10, 20))


@pytest.fixture(scope="module")
def measured_once(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured") / "out"
    measure_run(PROMPTS, out, ckpt_dir=source, settings=ONLY)
    return out


@pytest.fixture
def measured(measured_once, tmp_path):
    return shutil.copytree(measured_once, tmp_path / "out")


def alone(model, text):
    """Return transformers' own hidden states of one prompt at its last position."""
    ids = tiny_tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    return [state[0, -1] for state in states]


def test_layer_1_is_the_output_of_the_first_block():
    model = tiny_model()
    found = measure_activations(model, tiny_tokenizer(), PROMPTS).layers
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(found[1][row], alone(model, prompt.text)[1])


def test_the_last_layer_is_taken_before_the_final_norm():
    model, prompt = tiny_model(), PROMPTS[0]
    found = measure_activations(model, tiny_tokenizer(), PROMPTS).layers[2][0]
    with torch.no_grad():
        torch.testing.assert_close(model.model.norm(found), alone(model, prompt.text)[-1])
    assert not torch.allclose(found, alone(model, prompt.text)[-1])


def test_batches_change_no_number():
    together = measure_activations(tiny_model(), tiny_tokenizer(), PROMPTS, batch_size=6).layers
    one_by_one = measure_activations(tiny_model(), tiny_tokenizer(), PROMPTS, batch_size=1).layers
    torch.testing.assert_close(together, one_by_one)


def test_a_layer_that_is_not_there_is_named_with_the_choice():
    with pytest.raises(UserError, match="layer 3 of 2: choose from 1 to 2"):
        measure_activations(tiny_model(), tiny_tokenizer(), PROMPTS, layers=[1, 3])


def test_every_step_has_a_matrix_for_each_layer(measured):
    run = Trajectory(measured)
    assert run.steps == run.activation_steps() == [0, 10, 20]
    now, base = run.activations(20), tiny_model()
    base.set_attn_implementation("eager")  # as measured: another one rounds otherwise
    assert {layer: values.shape for layer, values in now.items()} == {1: (6, 8), 2: (6, 8)}
    wanted = measure_activations(base, tiny_tokenizer(), PROMPTS).layers
    np.testing.assert_allclose(run.activations(0)[1], wanted[1].numpy(), rtol=1e-5)
    assert not np.allclose(run.activations(0)[1], now[1])


def test_whoever_may_read_the_tables_may_read_the_activations(measured):
    modes = {path.stat().st_mode for path in [*measured.rglob("step-*"), measured / "run.json"]}
    assert len(modes) == 1


def test_half_a_file_is_measured_again(measured, source):
    half = measured / "activations/step-00000010.safetensors"
    whole = {name: values.clone() for name, values in load_file(half).items()}
    half.write_bytes(half.read_bytes()[:100])
    assert measure_run(PROMPTS, measured, ckpt_dir=source, settings=ONLY).new == [10]
    torch.testing.assert_close(load_file(half), whole, rtol=0, atol=0)


def test_a_step_without_activations_is_named_with_those_that_have_them(measured):
    with pytest.raises(UserError, match=r"of step 5: it has them of \[0, 10, 20\].*ntkprobe"):
        Trajectory(measured).activations(5)


def test_activations_are_read_without_torch(measured):
    code = (
        "import sys; from ntkprobe.trajectory import Trajectory\n"
        "assert Trajectory(sys.argv[1]).activations(20)[2].shape == (6, 8)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, measured], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the command ---


def test_only_activations_of_some_layers(source, tmp_path):
    assert measure_command(source, tmp_path, "--only", "activations", "--layers", "2") == 0
    run = Trajectory(tmp_path / "out")
    assert set(run.activations(10)) == {2}
    assert run.kernel().empty and run.refusal().empty


def test_layers_are_measured_besides_the_rest(source, tmp_path):
    assert measure_command(source, tmp_path, "--only", "refusal,activations", "--no-generate") == 0
    run = Trajectory(tmp_path / "out")
    assert set(run.activations(10)) == {1, 2}
    assert not run.refusal().empty and run.kernel().empty


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--layers", "0"], ["--layers", "from 1"]),
        (["--layers", "deep"], ["'deep'", "all"]),
        (["--only", "activation"], ["'activation'", "activations"]),
        (["--only", "kernel", "--layers", "1"], ["--only kernel,activations"]),
        (["--only", "activations", "--layers", "9"], ["layer 9 of 2", "from 1 to 2"]),
    ],
)
def test_mistakes_are_one_clear_line(source, tmp_path, capsys, flags, words):
    assert measure_command(source, tmp_path, *flags) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in last for word in words), last


def test_the_embedded_model_is_told_without_a_machines_path(tmp_path):
    settings = replace(ONLY, activations=ActivationSettings(layers=(1,)))
    prompts = PromptSet.from_file(embedded.measure_path()).take(range(2))
    measure_run(prompts, tmp_path / "out", model=str(embedded.model_path()), settings=settings)
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert told["model"]["base"] == "package:ntkprobe.tiny/model"
