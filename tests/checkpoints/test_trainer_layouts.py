"""Runs as each trainer writes them: the steps, the functions and the learning rates are theirs."""

import json
import pickle

import pytest
import torch
from fault_workers import SETTINGS
from tiny_runs import TEXTS, age, contents, tiny_adapter, tiny_model
from trainer_layouts import LAYOUTS, Bomb, full, resized, with_rows, write_state

from ntkprobe import PromptSet, Trajectory
from ntkprobe.checkpoints import LoadSettings, adapted, find_checkpoints, load_model, readiness
from ntkprobe.checkpoints.folders import counts_epochs
from ntkprobe.checkpoints.training_logs import read_training_log
from ntkprobe.errors import UserError
from ntkprobe.watcher import measure_run, plan
from ntkprobe.watcher.run import EPOCHS_ONLY

CPU = LoadSettings(device="cpu")
IDS = torch.arange(6)[None]
PROMPTS = PromptSet.from_texts(TEXTS)


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    """A layout and its folder, written long ago."""
    run = tmp_path / "run"
    run.mkdir()
    LAYOUTS[request.param].build(run)
    age(run, 7200)
    return LAYOUTS[request.param], run


def logits(model):
    return model(IDS).logits.detach()


def test_every_checkpoint_is_found_at_its_step_and_is_whole(layout):
    expected, run = layout
    found = find_checkpoints(run)
    assert tuple(c.step for c in found) == expected.steps
    verdicts = [readiness(c.path) for c in found]
    assert {v.kind for v in verdicts} == {expected.kind}
    assert {v.state for v in verdicts} <= {"ready", "unmarked"}


def test_every_checkpoint_is_the_function_that_was_trained(layout):
    expected, run = layout
    for checkpoint, seed in zip(find_checkpoints(run), expected.seeds, strict=True):
        if expected.kind == "full":
            found = logits(load_model(str(checkpoint.path), CPU))
            trained = logits(tiny_model(seed))
        else:
            with adapted(tiny_model(0), checkpoint.path) as model:
                found = logits(model)
            trained = logits(tiny_adapter(tiny_model(0), seed))
        assert torch.allclose(found, trained, atol=1e-5)
        assert not torch.allclose(found, logits(tiny_model(0)), atol=1e-2)


@pytest.mark.slow
def test_a_run_is_measured_whole_unpickles_nothing_and_is_left_as_it_was(layout, tmp_path):
    expected, run = layout
    before = contents(run)
    base = tmp_path / "base"
    named = {"model": str(base)} if base.is_dir() else {}
    outcome = measure_run(PROMPTS, tmp_path / "out", ckpt_dir=run, settings=SETTINGS, **named)
    assert outcome.status == 0
    steps = ([0] if named else []) + list(expected.steps)
    assert Trajectory(tmp_path / "out").steps == steps
    assert contents(run) == before and not list(tmp_path.rglob("executed"))


def test_a_bomb_goes_off_where_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_learning_rates_are_those_logged(layout):
    expected, run = layout
    log = read_training_log(run, find_checkpoints(run)[-1].path)
    assert log.rates == expected.rates and bool(log.source) == bool(expected.rates)


def test_steps_that_are_epochs_are_said_to_be(layout, tmp_path, capsys):
    expected, run = layout
    epochs = expected.build.__name__ in ("torchtune_full", "torchtune_lora")
    assert counts_epochs(run) == epochs
    assert (EPOCHS_ONLY in plan(tmp_path / "out", ckpt_dir=run)) == epochs


def test_a_log_of_nonsense_tells_nothing(tmp_path):
    lines = ["", "{", "[]", '{"current_steps": "1", "lr": 1}', '{"current_steps": 1, "lr": NaN}']
    lines += ['{"current_steps": 2, "lr": -1}', '{"current_steps": true, "lr": 0.1}', "[" * 9999]
    (tmp_path / "trainer_log.jsonl").write_text("\n".join(lines))
    (tmp_path / "log_1.txt").write_text("Step x | lr:1\nStep 1 | lr:inf\nStep 2 | loss:1\n")
    (tmp_path / "trainer_state.json").write_text(
        json.dumps({"log_history": [1, {"step": 1}, None]})
    )
    (tmp_path / "all_results.json").write_text(json.dumps({"train_samples": "many"}))
    assert read_training_log(tmp_path) == read_training_log(tmp_path / "nowhere")
    (tmp_path / "log_1.txt").write_text("Step 3 | loss:1 lr:2e-05 tokens:9\n")
    (tmp_path / "all_results.json").write_text(json.dumps({"train_samples": 7}))
    found = read_training_log(tmp_path)
    assert (found.rates, found.source, found.pairs) == ({3: 2e-05}, "log_1.txt", 7)


def test_a_model_in_the_runs_own_folder_counts_where_it_is_known_to_be_later(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    LAYOUTS["llama-factory"].build(run)
    assert [c.path for c in find_checkpoints(run)] == [run / "checkpoint-2", run]
    for step in (2, 1, 0):  # the same as the last one saved, or left over of another run
        write_state(run, global_step=step)
        assert [c.path for c in find_checkpoints(run)] == [run / "checkpoint-2"]


def test_added_tokens_are_measured_with_their_own_rows(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    resized(run)
    trained = tiny_model(4)
    trained.resize_token_embeddings(35, mean_resizing=False)
    with_rows(trained, 4)
    ids = torch.tensor([[3, 33, 34]])
    found = load_model(str(run / "checkpoint-4"), CPU)
    assert torch.allclose(found(ids).logits, trained(ids).logits, atol=1e-6)
    outcome = measure_run(PROMPTS, tmp_path / "out", ckpt_dir=run, settings=SETTINGS)
    assert outcome.status == 0 and outcome.new == [2, 4]


def test_a_run_without_numbered_folders_names_the_models_in_it(tmp_path):
    full(tmp_path / "run" / "merged_16bit", 1)
    with pytest.raises(UserError, match="models in merged_16bit: name one of these"):
        measure_run(PROMPTS, tmp_path / "out", ckpt_dir=tmp_path / "run", settings=SETTINGS)


def test_weights_without_a_configuration_say_who_writes_so(tmp_path):
    folder = full(tmp_path / "checkpoint-1", 1)
    (folder / "config.json").unlink()
    assert "save_state" in readiness(folder).reason


@pytest.mark.parametrize("name", ["step_4", "step-4", "epoch_1", "epoch-1"])
def test_a_model_with_a_folder_of_another_kind_beside_it_is_one_checkpoint(name, tmp_path):
    model = full(tmp_path / "model", 1)
    (model / name).mkdir()
    assert [c.path for c in find_checkpoints(model)] == [model] and not counts_epochs(model)
    full(model / name, 2)
    assert [c.path for c in find_checkpoints(model)] == [model / name]
