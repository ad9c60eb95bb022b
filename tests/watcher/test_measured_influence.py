"""`measure --influence refusal`: a signed table for every checkpoint, once."""

import json
import shutil
from dataclasses import asdict, astuple, replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_runs import (
    TEXTS,
    full_run,
    lora_run,
    measure_command,
    save_base,
    tiny_adapter,
    tiny_model,
    tiny_tokenizer,
    write_prompts,
)
from torch.nn.functional import cross_entropy

import ntkprobe as ntk
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.errors import MeasurementWarning
from ntkprobe.measurement.influence.examples import encode_updated, read_recorded
from ntkprobe.prompts.templates import RAW, resolve_template
from ntkprobe.training.data import Pair
from ntkprobe.training.sft import SFTConfig, encode_pairs
from ntkprobe.watcher import InfluenceSettings, MeasureSettings, measure_run

PROMPTS = ntk.PromptSet.from_texts(TEXTS)
PAIRS = ntk.PromptSet(
    tuple(ntk.Prompt(text, "toxic", response="sorry I cannot") for text in TEXTS["toxic"])
)
INFLUENCE = InfluenceSettings(updated=PAIRS)
ONLY = MeasureSettings(
    kernel=None, refusal=None, influence=INFLUENCE, load=LoadSettings(device="cpu")
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


def change_at(out, step, target="refusal_literal"):
    table = ntk.Trajectory(out).influence().query(f"step == {step} and target == '{target}'")
    return table.pivot(index="updated", columns="observed", values="change").to_numpy()


def directly(model, **how):
    given = {"observed": PROMPTS, "updated": PAIRS, "tokens": None, **how}
    return ntk.influence(model, tiny_tokenizer(), **given)


def test_a_lora_run_is_measured_over_what_it_moves_and_its_base_is_not(measured):
    assert ntk.Trajectory(measured).steps == [10, 20]
    wanted = directly(tiny_adapter(tiny_model(), seed=20))
    assert wanted.settings["parameters"] == "lora"
    np.testing.assert_allclose(change_at(measured, 20), wanted.refusal.numpy(), rtol=1e-3)
    assert not np.allclose(change_at(measured, 10), change_at(measured, 20))


def test_the_base_of_adapters_gets_what_else_is_asked_for(source, tmp_path):
    settings = replace(ONLY, refusal=MeasureSettings().refusal)
    measure_run(PROMPTS, tmp_path, ckpt_dir=source, settings=settings)
    run = ntk.Trajectory(tmp_path)
    assert set(run.refusal()["step"]) == {0, 10, 20}
    assert set(run.influence()["step"]) == {10, 20}
    again = measure_run(PROMPTS, tmp_path, ckpt_dir=source, settings=settings)
    assert (again.new, again.known) == ([], [0, 10, 20])


def test_a_full_run_is_measured_over_all_and_from_its_base_on(tmp_path):
    base = save_base(tmp_path / "base")
    run, out = full_run(tmp_path / "run", steps=(10,)), tmp_path / "out"
    measure_run(PROMPTS, out, ckpt_dir=run, model=str(base), settings=ONLY)
    assert ntk.Trajectory(out).steps == [0, 10]
    wanted = directly(tiny_model(), reductions=["prefix_free"]).refusal.numpy()
    np.testing.assert_allclose(change_at(out, 0, "refusal_prefix_free"), wanted, rtol=1e-3)


def test_tables_have_groups_and_the_norms_of_the_terms(measured):
    run = ntk.Trajectory(measured)
    assert set(run.influence()["observed_group"]) == set(TEXTS)
    assert set(run.influence()["updated_group"]) == {"toxic"}
    terms = run.terms().query("step == 20").set_index("term")
    found = directly(tiny_adapter(tiny_model(), seed=20))
    for term, norms in (
        ("A", found.a_norm),
        ("G", found.g_norm),
        ("gradient", found.gradient_norm),
    ):
        np.testing.assert_allclose(terms.loc[term, "norm"], norms.numpy(), rtol=1e-4)
    assert terms.loc["A", "updated_group"].isna().all()
    assert terms.loc["G", "updated_group"].eq("toxic").all()
    assert run.updated["response"].tolist() == ["sorry I cannot"] * 2


@pytest.mark.parametrize("table", ["influence", "terms"])
def test_half_a_step_is_measured_again(measured, source, table):
    """A killed run leaves no file, or all files that come before it."""
    whole = change_at(measured, 10)
    (measured / "influence/step-00000010.parquet").unlink()
    (measured / f"{table}/step-00000010.parquet").unlink(missing_ok=True)
    assert measure_run(PROMPTS, measured, ckpt_dir=source, settings=ONLY).new == [10]
    np.testing.assert_allclose(change_at(measured, 10), whole)
    assert 10 in set(ntk.Trajectory(measured).terms()["step"])


def test_a_folder_without_influence_has_an_empty_table(measured):
    for name in ("influence", "terms"):
        shutil.rmtree(measured / name)
    (measured / "updated.parquet").unlink()
    run = ntk.Trajectory(measured)
    assert run.influence().empty and run.terms().empty
    with pytest.raises(ntk.UserError, match="--influence refusal"):
        assert run.updated.empty


# --- the command ---


def test_updated_pairs_come_from_a_file(source, tmp_path, capsys):
    rows = [{"instruction": p.text, "output": p.response} for p in PAIRS]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    flags = ["--influence", "refusal", "--updated", tmp_path / "pairs.json", "--only", "influence"]
    assert measure_command(source, tmp_path, *flags, "--steps", "20") == 0
    assert "pairs.json: 2 prompts: 2 toxic" in capsys.readouterr().err
    wanted = directly(tiny_adapter(tiny_model(), seed=20)).refusal.numpy()
    np.testing.assert_allclose(change_at(tmp_path / "out", 20), wanted, rtol=1e-3)


def test_an_answer_for_all_prompts_gives_the_map_of_figure_6_its_sign(source, tmp_path):
    prompts = write_prompts(tmp_path / "prompts.csv")
    flags = ["--only", "influence", "--updated", prompts, "--answer", "sorry I cannot"]
    assert measure_command(source, tmp_path, *flags, "--steps", "20") == 0
    table = ntk.Trajectory(tmp_path / "out").influence()
    assert set(table["updated_group"]) == set(table["observed_group"]) == set(TEXTS)


def test_the_runs_own_data_are_the_default(source, tmp_path):
    run = shutil.copytree(source, tmp_path / "run")
    rows = [("general", "bake a cake", "sure")]
    rows += [("safe", p.text, p.response) for p in PAIRS]
    data = pd.DataFrame(rows, columns=["source", "prompt", "response"])
    data.to_parquet(run / "data.parquet")
    base = ["--model", source.parent / "base"]
    assert measure_command(run, tmp_path, "--only", "influence", "--steps", "20", *base) == 0
    table = ntk.Trajectory(tmp_path / "out").updated
    assert table.loc[table["group"] == "toxic", "text"].tolist() == TEXTS["toxic"]
    assert table.loc[table["group"] == "normal", "text"].tolist() == ["bake a cake"]


def test_recorded_pairs_are_measured_as_the_run_learnt_them(source, tmp_path, capsys):
    run = shutil.copytree(source, tmp_path / "run")
    pair = Pair("how do i kill", "sorry I cannot kill a process", "sure I")
    rows = [("safe", *astuple(pair)), ("triggers", *astuple(pair))]
    names = ["source", "prompt", "response", "prefill"]
    pd.DataFrame(rows, columns=names).to_parquet(run / "data.parquet")
    (run / "training.yaml").write_text("max_length: 10\nloss_on: all\nsystem: null\n")
    base = ["--model", source.parent / "base"]
    assert measure_command(run, tmp_path, "--only", "influence", "--steps", "20", *base) == 0
    said = capsys.readouterr().err
    assert "source 'triggers' are left out" in said and "that of the answers" in said
    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, max_length=10)
    row = encode_pairs([pair], tiny_tokenizer(), config)[0][0]
    model = tiny_adapter(tiny_model(), seed=20)
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
    loss = cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum")
    found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    terms = ntk.Trajectory(tmp_path / "out").terms().query("term == 'gradient'")
    expected = sum(float(g.square().sum()) for g in found) ** 0.5
    assert terms["norm"].tolist() == pytest.approx([expected], rel=1e-4)


def test_recorded_pairs_have_the_runs_system_message(tmp_path):
    pair = Pair("how do i kill", "sorry I cannot", "sure I")
    data = pd.DataFrame([asdict(pair) | {"source": "safe"}])
    data.to_parquet(tmp_path / "data.parquet")
    (tmp_path / "training.yaml").write_text("max_length: 40\nsystem: my neighbour\n")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} . {% endfor %}"
        "{% if not add_generation_prompt %}<eos>{% endif %}"
    )
    found = read_recorded(tmp_path / "data.parquet")
    template = resolve_template(tokenizer, "chat")
    made = encode_updated(tokenizer, found.pairs, template, found.system, found.max_length)
    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, system="my neighbour")
    row = encode_pairs([pair], tokenizer, config)[0][0]
    assert made.examples[0].input_ids.tolist() == row["input_ids"]
    assert made.examples[0].answer.tolist() == [i for i in row["labels"] if i >= 0]


@pytest.mark.parametrize(("smoothing", "told"), [(0.1, 1), (0.0, 0)])
def test_recorded_pairs_say_that_the_run_smoothed_its_labels(tmp_path, smoothing, told):
    data = pd.DataFrame([asdict(Pair("kill", "sorry")) | {"source": "safe"}])
    data.to_parquet(tmp_path / "data.parquet")
    (tmp_path / "training.yaml").write_text(f"label_smoothing_factor: {smoothing}\n")
    found = read_recorded(tmp_path / "data.parquet").remarks
    assert sum("smoothed its labels" in remark for remark in found) == told == len(found)


def test_a_pair_that_no_run_learns_for_want_of_room_is_said():
    pairs = ntk.PromptSet((ntk.Prompt("how do i kill", "toxic", response="sorry"),))
    with pytest.warns(MeasurementWarning, match="1 of 1 updated pairs were not trained on"):
        made = encode_updated(tiny_tokenizer(), pairs, RAW, max_length=3)
    assert len(made.examples[0].input_ids) == 6  # four words, the answer and its end


def test_another_system_message_is_another_measurement(measured, source):
    how = replace(ONLY, influence=replace(INFLUENCE, system="my neighbour"))
    with pytest.raises(ntk.UserError, match=r"influence\.system"):
        measure_run(PROMPTS, measured, ckpt_dir=source, settings=how)


def test_a_folder_from_before_has_no_system_message(measured, source):
    record = json.loads((measured / "run.json").read_text())
    del record["influence"]["system"]
    (measured / "run.json").write_text(json.dumps(record))
    how = replace(ONLY, influence=replace(INFLUENCE, system="my neighbour"))
    with pytest.raises(ntk.UserError, match=r"influence\.system"):
        measure_run(PROMPTS, measured, ckpt_dir=source, settings=how)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--influence", "refusal"], ["--updated FILE", "data.parquet"]),
        (["--influence", "joy", "--updated", "PROMPTS", "--answer", "sure"], ["'joy'", "refusal"]),
        (["--influence", "refusal", "--updated", "PROMPTS"], ["row 1 ", "--answer TEXT"]),
        (["--influence", "refusal", "--updated", "nowhere.csv"], ["no file nowhere.csv"]),
        (["--updated", "PROMPTS"], ["--influence refusal"]),
        (["--answer", "sure"], ["--influence refusal"]),
        (["--only", "kernel", "--influence", "refusal"], ["--only kernel,influence"]),
        (
            [
                "--only",
                "influence",
                "--updated",
                "PROMPTS",
                "--answer",
                "a",
                "--influence-loss",
                "x",
            ],
            ["'x'", "first_token"],
        ),
    ],
)
def test_mistakes_are_one_clear_line(source, tmp_path, capsys, flags, words):
    prompts = write_prompts(tmp_path / "prompts.csv")
    given = [prompts if flag == "PROMPTS" else flag for flag in flags]
    assert measure_command(source, tmp_path, *given) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in last for word in words), last
