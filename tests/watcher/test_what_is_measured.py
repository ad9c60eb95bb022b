"""What is measured of a run: its checkpoints, their kernels and tokens, their refusals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TEXTS, contents, tiny_adapter, tiny_model, tiny_tokenizer
from watched_runs import PROMPTS, SETTINGS, kernel_at, measure, with_kernel

from ntkprobe import Trajectory, UserError, kernel, measure_kernel, measure_refusal
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.measurement import readouts
from ntkprobe.watcher import Choice, RefusalSettings, models, parse_steps


def directly(model, **options):
    options = {"estimator": "dense", "top_k": 2, **options}
    return measure_kernel(model, tiny_tokenizer(), PROMPTS, **options).norms.numpy()


# Kernels


def test_a_lora_run_gives_the_base_and_every_checkpoint_at_merged_weights(measured):
    assert Trajectory(measured).steps == [0, 10, 20]
    np.testing.assert_allclose(kernel_at(measured, 0), directly(tiny_model()), rtol=1e-5)
    merged = tiny_adapter(tiny_model(), seed=20).merge_and_unload()
    np.testing.assert_allclose(kernel_at(measured, 20), directly(merged), rtol=1e-5)


def test_an_adapters_own_parameters_are_another_kernel_and_the_base_has_none(run, tmp_path):
    measure(run, tmp_path / "lora", with_kernel(parameters="lora"))
    assert Trajectory(tmp_path / "lora").steps == [10, 20]
    wanted = directly(tiny_adapter(tiny_model(), seed=10), parameters="lora")
    np.testing.assert_allclose(kernel_at(tmp_path / "lora", 10), wanted, rtol=1e-4)


@pytest.mark.slow
def test_a_full_run_has_step_0_only_where_the_base_is_named(source, tmp_path):
    measure(source / "full", tmp_path / "without")
    measure(source / "full", tmp_path / "with", model=str(source / "base"))
    assert Trajectory(tmp_path / "without").steps == [10, 20]
    assert Trajectory(tmp_path / "with").steps == [0, 10, 20]
    np.testing.assert_allclose(
        kernel_at(tmp_path / "with", 10), directly(tiny_model(10)), rtol=1e-5
    )


def test_a_model_alone_is_step_0(source, tmp_path):
    measure(None, tmp_path / "out", model=str(source / "base"))
    np.testing.assert_allclose(kernel_at(tmp_path / "out", 0), directly(tiny_model()), rtol=1e-5)


def test_one_checkpoint_alone_is_measured_without_its_base(run, tmp_path):
    measure(run / "checkpoint-20", tmp_path / "out")
    assert Trajectory(tmp_path / "out").steps == [20]


def test_a_checkpoint_folder_is_never_written_to(run, tmp_path):
    before = contents(run)
    measure(run, tmp_path / "out")
    assert contents(run) == before and not list(run.parent.rglob(".pins/*/*"))


def test_adapters_are_swapped_over_one_base_that_is_loaded_once(run, tmp_path, monkeypatch):
    loaded, original = [], models.load_model
    monkeypatch.setattr(models, "load_model", lambda *args: loaded.append(args) or original(*args))
    assert measure(run, tmp_path / "out").new == [0, 10, 20]
    assert len(loaded) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "full"])
def test_a_model_spread_over_devices_gives_the_same_kernel(kind, source, tmp_path):
    spread = replace(SETTINGS, load=LoadSettings(device_map="auto"))
    assert measure(source / kind, tmp_path / "spread", spread).status == 0
    measure(source / kind, tmp_path / "whole")
    for step in (10, 20):
        wanted = kernel_at(tmp_path / "whole", step)
        np.testing.assert_allclose(kernel_at(tmp_path / "spread", step), wanted, rtol=1e-5)


def test_an_unknown_way_to_spread_a_model_is_one_clear_line():
    with pytest.raises(UserError, match="'everywhere': choose from auto"):
        LoadSettings(device_map="everywhere")


def test_prompts_and_tokens_are_told_by_row(run, tmp_path):
    measure(run, tmp_path / "out", with_kernel(per_group=1))
    run = Trajectory(tmp_path / "out")
    chosen = run.prompts[run.prompts["in_kernel"]]
    assert len(run.prompts) == 6 and len(chosen) == 3
    assert set(run.kernel()["observed"]) == set(run.tokens()["prompt"]) == set(chosen["prompt"])
    assert (run.prompts["n_tokens"] == [len(t.split()) for ts in TEXTS.values() for t in ts]).all()


@pytest.mark.slow
def test_fixed_top_tokens_are_those_of_the_first_step(run, tmp_path):
    def tokens_of(out):
        table = Trajectory(out).tokens()
        return [list(rows["token"]) for _, rows in table.groupby("step")]

    measure(run, tmp_path / "first", with_kernel(top_k_at="first"))
    measure(run, tmp_path / "each")
    first, each = tokens_of(tmp_path / "first"), tokens_of(tmp_path / "each")
    assert first[0] == first[1] == first[2] == each[0] and each[0] != each[1]


@pytest.mark.parametrize(("at", "found", "checked"), [("each", 3, 0), ("first", 1, 2)])
def test_top_tokens_are_found_once_a_checkpoint_and_given_ones_are_checked(
    run, tmp_path, monkeypatch, at, found, checked
):
    calls = {"found": 0, "checked": 0}

    def counted(name, original):
        def call(*args):
            calls[name] += 1
            return original(*args)

        return call

    monkeypatch.setattr(kernel, "top_tokens", counted("found", kernel.top_tokens))
    monkeypatch.setattr(readouts, "check_logits", counted("checked", readouts.check_logits))
    settings = replace(with_kernel(top_k_at=at), verify=False)
    measure(run, tmp_path / "out", settings)
    assert len(Trajectory(tmp_path / "out").steps) == 3
    assert calls == {"found": found, "checked": checked}


def test_tokens_given_as_texts_are_the_tokens_of_every_block(run, tmp_path):
    measure(run, tmp_path / "out", with_kernel(tokens=("sorry", 7)))
    table = Trajectory(tmp_path / "out").tokens()
    assert set(table["token"]) == {tiny_tokenizer().convert_tokens_to_ids("sorry"), 7}


def test_random_probes_of_all_logits_come_with_errors_and_without_tokens(run, tmp_path):
    measure(run, tmp_path / "out", with_kernel(random_probes=3))
    found = Trajectory(tmp_path / "out")
    assert found.tokens().empty and found.kernel()["norm_error"].notna().all()


def test_layers_and_blocks_are_kept_on_demand(run, tmp_path):
    out = tmp_path / "out"
    measure(
        run, out, with_kernel(by="layer", keep_blocks=True), choice=Choice(steps=parse_steps("10"))
    )
    parts = Trajectory(out).parts().groupby(["observed", "updated"])["share"].sum()
    np.testing.assert_allclose(parts, 1, rtol=1e-6)
    blocks = load_file(out / "blocks" / "step-00000010.safetensors")["blocks"]
    norms = torch.linalg.matrix_norm(blocks.transpose(1, 2)).numpy()
    np.testing.assert_allclose(norms, kernel_at(out, 10), rtol=1e-5)


def test_drift_is_that_of_the_kernels_of_two_models_at_the_first_ones_tokens(run, tmp_path):
    out = tmp_path / "out"
    measure(run, out, with_kernel(top_k_at="first", keep_blocks=True))
    later = tiny_adapter(tiny_model(), seed=20).merge_and_unload()
    options = {"estimator": "dense", "keep_blocks": True}
    first = measure_kernel(tiny_model(), tiny_tokenizer(), PROMPTS, top_k=2, **options)
    then = measure_kernel(later, tiny_tokenizer(), PROMPTS, tokens=first.tokens, **options)
    a, b = (each.blocks.double().flatten() for each in (first, then))
    table = Trajectory(out).drift().query("observed_group.isna()").set_index("step")
    assert table.loc[20, "drift"] == pytest.approx(float(1 - a @ b / a.norm() / b.norm()), rel=1e-4)
    assert table.loc[0, "drift"] == 0 < 1e-4 < table.loc[20, "drift"]


def test_drift_at_each_steps_own_tokens_is_refused(run, tmp_path):
    measure(run, tmp_path / "out", with_kernel(keep_blocks=True))
    with pytest.raises(UserError, match="other tokens at step"):
        Trajectory(tmp_path / "out").drift()


# Refusals

REFUSAL = replace(SETTINGS, kernel=None, refusal=RefusalSettings(max_new_tokens=3))


def test_refusals_join_a_folder_that_has_kernels_and_neither_is_repeated(run, measured):
    before = contents(measured / "kernel")
    outcome = measure(run, measured, replace(REFUSAL, kernel=SETTINGS.kernel))
    assert outcome.new == [0, 10, 20] and contents(measured / "kernel") == before
    assert measure(run, measured, REFUSAL).known == [0, 10, 20]
    assert Trajectory(measured).settings["refusal"]["max_new_tokens"] == 3
    assert Trajectory(measured).settings["kernel"]["top_k"] == 2


def test_refusals_are_those_of_every_checkpoint_on_all_prompts(run, tmp_path):
    measure(run, tmp_path / "out", REFUSAL)
    table = Trajectory(tmp_path / "out").refusal()
    merged = tiny_adapter(tiny_model(), seed=20).merge_and_unload()
    wanted = measure_refusal(merged, tiny_tokenizer(), PROMPTS, max_new_tokens=3).frame()
    found = table[table["step"] == 20]
    np.testing.assert_allclose(found["probability"], wanted["probability"], rtol=1e-3)
    assert found["refuses"].tolist() == wanted["refuses"].tolist()
    assert len(table) == 3 * 6 * 2


def test_answers_are_not_written_to_disk(run, tmp_path):
    measure(run, tmp_path / "out", REFUSAL)
    model = tiny_model()
    answers = measure_refusal(model, tiny_tokenizer(), PROMPTS, max_new_tokens=3).answers
    tables = [pd.read_parquet(path) for path in (tmp_path / "out").rglob("*.parquet")]
    words = {str(value) for table in tables for value in table.to_numpy().ravel()}
    assert any(answers) and not words & set(filter(None, answers))
