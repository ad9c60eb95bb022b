import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import (
    TEXTS,
    contents,
    events,
    finish,
    full_run,
    lora_run,
    save_base,
    tiny_adapter,
    tiny_model,
    tiny_tokenizer,
)

from ntkprobe import PromptSet, Trajectory, UserError, kernel, measure_kernel, measure_refusal
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.gram import Gram
from ntkprobe.measurement import readouts
from ntkprobe.storage import write_table
from ntkprobe.watcher import (
    Choice,
    KernelSettings,
    MeasurementFolder,
    MeasureSettings,
    RefusalSettings,
    measure_run,
    models,
    parse_shard,
    parse_steps,
)
from ntkprobe.watcher.folder import IDENTITY

PROMPTS = PromptSet.from_texts(TEXTS)
KERNEL = KernelSettings(estimator="dense", top_k=2)
SETTINGS = MeasureSettings(kernel=KERNEL, refusal=None, load=LoadSettings(device="cpu"))


def with_kernel(**changes):
    return replace(SETTINGS, kernel=replace(KERNEL, **changes))


def measure(run, out, settings=SETTINGS, **options):
    return measure_run(PROMPTS, out, ckpt_dir=run, settings=settings, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    lora_run(root, steps=(10, 20))
    full_run(root / "full", steps=(10, 20))
    return root


@pytest.fixture
def run(source, tmp_path):
    shutil.copytree(source / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def measured_once(source):
    measure(source / "run", source / "measured")
    return source / "measured"


@pytest.fixture
def measured(measured_once, tmp_path):
    return shutil.copytree(measured_once, tmp_path / "out")


def kernel_at(out, step):
    table = Trajectory(out).kernel()
    rows = table[table["step"] == step]
    return rows.pivot(index="observed", columns="updated", values="norm").to_numpy()


def identity_of(out, step):
    return MeasurementFolder(out).measured("kernel", step)


def directly(model, **options):
    options = {"estimator": "dense", "top_k": 2, **options}
    return measure_kernel(model, tiny_tokenizer(), PROMPTS, **options).norms.numpy()


# --- what is measured ---


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


CPU_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def out_of_memory(monkeypatch, estimator, fits, error=CPU_MEMORY):
    """Let an estimator have room for `fits` prompts at a time; return the sizes tried."""
    tried, original = [], estimator.__call__

    def limited(self, model, probes, parameters):
        if len(probes) > 2:  # not the two of `verify`
            tried.append(self.batch_size)
            if self.batch_size == "auto" or self.batch_size > fits:
                raise error
        return original(self, model, probes, parameters)

    monkeypatch.setattr(estimator, "__call__", limited)
    return tried


@pytest.mark.slow
def test_a_batch_size_given_is_the_kernels_and_too_large_a_one_says_so(run, tmp_path, monkeypatch):
    tried, one = out_of_memory(monkeypatch, Gram, 2), Choice(steps=parse_steps("0"))
    settings = with_kernel(estimator="gram")
    measure(run, tmp_path / "out", replace(settings, batch_size=2), choice=one)
    assert tried == [2] and Trajectory(tmp_path / "out").steps == [0]
    with pytest.raises(UserError, match="with 3 prompts at a time: try a smaller --batch-size"):
        measure(run, tmp_path / "more", replace(settings, batch_size=3), choice=one)
    assert tried == [2, 3]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("of a GPU"), CPU_MEMORY, MemoryError()])
def test_what_gram_could_not_fit_by_itself_is_not_tried_again(run, tmp_path, monkeypatch, error):
    tried = out_of_memory(monkeypatch, Gram, 0, error)
    with pytest.raises(
        UserError, match="fewer prompts at a time would not help: try a smaller --per"
    ):
        measure(run, tmp_path / "out", with_kernel(estimator="gram"))
    assert set(tried) == {"auto"} and len(tried) <= 3  # once a checkpoint


@pytest.mark.slow
def test_an_estimator_that_does_not_halve_by_itself_is_given_smaller_batches(
    run, tmp_path, monkeypatch
):
    tried = out_of_memory(monkeypatch, FiniteDifference, 4)
    one = Choice(steps=parse_steps("0"))
    measure(run, tmp_path / "out", with_kernel(estimator="finite_difference"), choice=one)
    assert tried == [128, 16, 8, 4] and Trajectory(tmp_path / "out").steps == [0]


# --- refusals ---

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


# --- states ---


def test_every_state_of_a_checkpoint_is_told_in_its_order(run, tmp_path):
    (run / "checkpoint-20" / "adapter_model.safetensors").unlink()
    measure(run, tmp_path / "out", choice=Choice(steps=parse_steps("5:")))
    told = [(e["state"], e.get("step")) for e in events(tmp_path / "out")]
    assert told == [
        ("incomplete", 20),
        ("ready", 10),
        ("measuring", 10),
        ("compared", 10),
        ("done", 10),
    ]
    incomplete, ready, _, _, done = events(tmp_path / "out")
    assert incomplete["reason"] == "no adapter_model.safetensors" and done["seconds"] > 0
    assert ready["identity"] == identity_of(tmp_path / "out", 10)


def test_what_was_left_alone_is_told_with_the_reason(run, measured):
    (measured / "kernel" / "step-00000010.parquet").unlink()
    measure(run, measured, choice=Choice(steps=parse_steps("0:10")))
    *_, known, unwanted = events(measured)
    assert (known["state"], known["steps"]) == ("skipped", [0]) and "before" in known["reason"]
    assert (unwanted["state"], unwanted["count"]) == ("skipped", 1)


# --- resuming ---


def test_a_second_run_measures_nothing_and_writes_nothing(run, measured):
    before = contents(measured)
    outcome = measure(run, measured)
    assert (outcome.new, outcome.known, outcome.status) == ([], [0, 10, 20], 0)
    assert contents(measured) == before


def test_a_lost_table_alone_is_measured_again_and_is_the_same(run, measured):
    path = measured / "kernel" / "step-00000010.parquet"
    before = path.read_bytes()
    path.unlink()
    assert measure(run, measured).new == [10]
    assert path.read_bytes() == before


def test_a_torn_table_is_measured_again(run, measured):
    path = measured / "kernel" / "step-00000010.parquet"
    before = path.read_bytes()
    path.write_bytes(before[:100])
    assert measure(run, measured).new == [10] and path.read_bytes() == before


def test_a_checkpoint_written_anew_is_measured_anew_with_an_event(run, measured):
    tiny_adapter(tiny_model(), seed=99).save_pretrained(run / "checkpoint-20")
    finish(run / "checkpoint-20", 20, 20)
    before = kernel_at(measured, 20)
    assert measure(run, measured).new == [20]
    assert not np.allclose(kernel_at(measured, 20), before)
    *told, skipped = [(e["state"], e.get("step")) for e in events(measured)][-6:]
    states = ("ready", "measuring", "replaced", "compared", "done")
    assert told == [(state, 20) for state in states]
    assert skipped[0] == "skipped" and events(measured)[-1]["steps"] == [0, 10]


def test_a_checkpoint_whose_settings_alone_changed_is_measured_anew(run, measured):
    before, path = kernel_at(measured, 20), run / "checkpoint-20/adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 8 * config["lora_alpha"]}))
    assert measure(run, measured).new == [20]
    assert not np.allclose(kernel_at(measured, 20), before)


def test_what_was_measured_when_only_weights_counted_is_known(run, measured):
    record = json.loads((measured / "run.json").read_text())
    record["model"]["base_identity"] = record["model"]["base_identity"].partition("-")[0]
    (measured / "run.json").write_text(json.dumps(record))
    for step in (0, 10, 20):
        path, which = measured / f"kernel/step-{step:08}.parquet", identity_of(measured, step)
        assert len(which.partition("-")[0]) == 64 and "-" in which
        table = pd.read_parquet(path, partitioning=None)
        write_table(path, table, {IDENTITY: which.partition("-")[0]})
    assert measure(run, measured).known == [0, 10, 20]


def test_steps_that_only_an_earlier_run_had_are_named(run, measured, capsys):
    assert measure(run, measured).known == [0, 10, 20]
    assert "of which" not in capsys.readouterr().err
    (run / "checkpoint-10").rename(run / "checkpoint-15")
    finish(run / "checkpoint-15", 15, 20)
    tiny_adapter(tiny_model(), seed=99).save_pretrained(run / "checkpoint-20")
    finish(run / "checkpoint-20", 20, 20)
    assert measure(run, measured).new == [15, 20]
    said = capsys.readouterr().err
    assert f"has step 10, of which {run} has no checkpoint" in said and "--overwrite" in said
    assert not measure(run, measured).new and "of which" not in capsys.readouterr().err


def test_fixed_tokens_of_a_first_checkpoint_that_was_replaced_are_refused(source, run, tmp_path):
    settings = with_kernel(top_k_at="first")
    how = {"choice": Choice(steps=parse_steps("10,20")), "model": str(source / "base")}
    assert measure(run, tmp_path / "out", settings, **how).new == [10, 20]
    tiny_adapter(tiny_model(), seed=98).save_pretrained(run / "checkpoint-20")
    finish(run / "checkpoint-20", 20, 20)
    assert measure(run, tmp_path / "out", settings, **how).new == [20]
    tiny_adapter(tiny_model(), seed=99).save_pretrained(run / "checkpoint-10")
    finish(run / "checkpoint-10", 10, 20)
    failed = measure(run, tmp_path / "out", settings, **how).failed
    assert list(failed) == [10] and "top tokens of an earlier checkpoint of step 10" in failed[10]


def test_rows_of_another_checkpoint_of_that_step_do_not_stay(run, measured):
    shutil.copytree(
        measured / "kernel", measured / "refusal"
    )  # as if measured, on the old checkpoint
    tiny_adapter(tiny_model(), seed=99).save_pretrained(run / "checkpoint-20")
    finish(run / "checkpoint-20", 20, 20)
    measure(run, measured)
    assert not (measured / "refusal" / "step-00000020.parquet").exists()
    assert (measured / "refusal" / "step-00000010.parquet").exists()
    assert [e["table"] for e in events(measured) if e["state"] == "replaced"] == [
        "kernel",
        "refusal",
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (with_kernel(parameters="last:1"), ["kernel.parameters", "'all'", "'last:1'"]),
        (with_kernel(top_k=3), ["kernel.top_k", "2", "3"]),
        (replace(SETTINGS, template="raw", max_length=3), ["prompts.max_length", "None", "3"]),
        (replace(SETTINGS, load=LoadSettings(dtype="float64")), ["dtype", "float32", "float64"]),
    ],
)
def test_another_setting_into_the_same_folder_names_both_values(settings, words, run, measured):
    before = contents(measured)
    with pytest.raises(UserError) as caught:
        measure(run, measured, settings)
    assert all(word in str(caught.value) for word in words)
    assert contents(measured) == before


def test_other_prompts_or_another_base_into_the_same_folder_are_refused(run, measured, tmp_path):
    with pytest.raises(UserError, match=r"prompts\.digest"):
        measure_run(PROMPTS[:3], measured, ckpt_dir=run, settings=SETTINGS)
    other = save_base(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match="base_identity"):
        measure(run, measured, model=str(other))


def test_overwriting_forgets_what_was_measured_and_nothing_else(run, measured):
    (measured / "notes.txt").write_text("mine")
    assert measure(run, measured, with_kernel(top_k=3), overwrite=True).new == [0, 10, 20]
    assert (measured / "notes.txt").read_text() == "mine"


# --- what goes wrong ---


def test_one_bad_checkpoint_does_not_stop_the_others(run, tmp_path):
    weights = run / "checkpoint-10" / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[sorted(tensors)[0]][0, 0] = float("nan")
    save_file(tensors, weights)
    finish(run / "checkpoint-10", 10, 20)
    outcome = measure(run, tmp_path / "out")
    assert outcome.new == [0, 20] and outcome.status == 1
    assert "NaN" in outcome.failed[10]
    (failed,) = (e for e in events(tmp_path / "out") if e["state"] == "failed")
    assert (failed["step"], failed["tries"], failed["reason"]) == (10, 1, outcome.failed[10])


def test_an_incomplete_checkpoint_is_named_and_measured_once_it_is_whole(run, tmp_path):
    hidden = (run / "checkpoint-10" / "adapter_config.json").rename(tmp_path / "config")
    outcome = measure(run, tmp_path / "out")
    assert outcome.status == 1 and "adapter_config.json" in outcome.failed[10]
    hidden.rename(run / "checkpoint-10" / "adapter_config.json")
    assert measure(run, tmp_path / "out").new == [10]


def test_where_nothing_can_be_measured_the_reason_is_the_one_line(run, tmp_path):
    shutil.rmtree(run / "checkpoint-20")
    (run / "checkpoint-10" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        measure(run, tmp_path / "out")


def test_a_mistake_in_the_settings_is_told_before_anything_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ntkprobe.watcher.models.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match="no term"):
        measure(run, tmp_path / "out", with_kernel(parameters="everything"))


def test_an_adapter_whose_base_is_not_here_asks_for_it_by_name(run, tmp_path):
    for folder in run.iterdir():
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "some-owner/some-model"
        (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="--model some-owner/some-model"):
        measure(run, tmp_path / "out")


def test_no_network_is_used_for_local_checkpoints(run, source, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("network"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("network"))
    assert measure(run, tmp_path / "lora").new == [0, 10, 20]
    assert measure(source / "full", tmp_path / "full").new == [10, 20]


def test_an_interrupted_run_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    from ntkprobe.watcher.measure import CheckpointMeasurer

    original = CheckpointMeasurer.of_checkpoint

    def stop_at_20(self, scanned):
        if scanned.checkpoint.step == 20:
            raise KeyboardInterrupt
        return original(self, scanned)

    monkeypatch.setattr(CheckpointMeasurer, "of_checkpoint", stop_at_20)
    outcome = measure(run, tmp_path / "out")
    assert outcome.status == 130 and Trajectory(tmp_path / "out").steps == [0, 10]
    monkeypatch.undo()
    outcome = measure(run, tmp_path / "out")
    assert (outcome.new, outcome.known) == ([20], [0, 10])


# --- choosing ---


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("0:2000:100", {0, 100, 2000}),
        ("100:", {100, 150, 2000}),
        (":100", {0, 50, 100}),
        ("50,2000", {50, 2000}),
        ("::50", {0, 50, 100, 150, 2000}),
    ],
)
def test_steps_are_chosen_by_ranges_with_both_ends(spec, wanted):
    ranges = parse_steps(spec)
    assert {s for s in (0, 50, 100, 150, 2000) if any(s in r for r in ranges)} == wanted


@pytest.mark.parametrize("spec", ["", "a:b", "1:2:0", "1:2:3:4", "-5"])
def test_anything_else_is_no_range_of_steps(spec):
    with pytest.raises(UserError, match="--steps"):
        parse_steps(spec)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_shards_are_disjoint_and_together_everything(workers, run, tmp_path):
    steps = [
        measure(run, tmp_path / "out", choice=Choice(shard=(i, workers))).new
        for i in range(workers)
    ]
    assert sorted(step for part in steps for step in part) == [0, 10, 20]
    assert max(map(len, steps)) - min(map(len, steps)) <= 1


def slurm_array(number, first, last, gap, count):
    values = {"ID": number, "MIN": first, "MAX": last, "STEP": gap, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("spec", "environment", "wanted"),
    [
        ("2/4", {"RANK": "0", "WORLD_SIZE": "8"}, (2, 4)),
        (None, {}, (0, 1)),
        (None, {"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        (None, slurm_array(14, 10, 18, 2, 5), (2, 5)),
        (None, slurm_array(3, 3, 3, 1, 1), (0, 1)),  # the one that failed, submitted again
        (None, slurm_array(1, 0, 2, 1, 3) | {"RANK": "1", "WORLD_SIZE": "2"}, (3, 6)),
    ],
)
def test_a_worker_learns_its_number_from_the_flag_torchrun_or_slurm(spec, environment, wanted):
    assert parse_shard(spec, environment) == wanted


@pytest.mark.parametrize("numbers", [(1, 3, 7), (0, 1, 3), (2, 4, 5)])
def test_a_slurm_array_with_gaps_is_refused_since_checkpoints_would_be_left_out(numbers):
    for number in numbers:
        environment = slurm_array(number, numbers[0], numbers[-1], 1, 3)
        with pytest.raises(UserError, match="--shard i/n"):
            parse_shard(None, environment)


def test_the_workers_of_an_array_of_torchruns_are_all_different():
    found = [
        parse_shard(None, slurm_array(i, 0, 2, 1, 3) | {"RANK": str(rank), "WORLD_SIZE": "4"})
        for i in range(3)
        for rank in range(4)
    ]
    assert found == [(worker, 12) for worker in range(12)]


def test_fixed_top_tokens_are_settled_before_workers_share_the_rest(run, tmp_path):
    settings, shard = with_kernel(top_k_at="first"), Choice(shard=(1, 2))
    with pytest.raises(UserError, match="--steps 0"):
        measure(run, tmp_path / "out", settings, choice=shard)
    measure(run, tmp_path / "out", settings, choice=Choice(steps=parse_steps("0")))
    assert measure(run, tmp_path / "out", settings, choice=shard).status == 0


@pytest.mark.parametrize("spec", ["4/4", "1", "a/b", "-1/2"])
def test_anything_else_is_no_shard(spec):
    with pytest.raises(UserError, match="--shard"):
        parse_shard(spec, {})
