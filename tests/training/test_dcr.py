"""Laws of the contrastive stage, on random models of four blocks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import training_world as world
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from ntkprobe.errors import UserError
from ntkprobe.models.parameters import effective_parameters, part_of
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.training.callbacks import install
from ntkprobe.training.contrast_data import drawn
from ntkprobe.training.data import Pair
from ntkprobe.training.dcr import DCRConfig, DCRTrainer, train_dcr
from ntkprobe.training.losses import circle_loss, circle_loss_floor

TOKENIZER = world.tokenizer()


def config(folder, **changes) -> DCRConfig:
    settings = {"layer": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "max_steps": 4}
    return DCRConfig(output_dir=str(folder), use_cpu=True, **{**settings, **changes})


def trainer(folder, model=None, prompts=None, tokenizer=TOKENIZER, **changes) -> DCRTrainer:
    model = world.network() if model is None else model
    prompts = world.prompts() if prompts is None else prompts
    changes = {"save_strategy": "no", **changes}
    return DCRTrainer(model, config(folder, **changes), prompts, tokenizer)


def batch_of(made: DCRTrainer, *rows: int) -> dict[str, torch.Tensor]:
    return made.data_collator([made.train_dataset[row] for row in rows])


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in effective_parameters(model).items()}


def above(name: str, model, layer: int) -> bool:
    part = part_of(model)[name]
    return part.kind in ("norm", "head", "embed+head") or (part.layer or 0) > layer


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return world.saved(tmp_path_factory.mktemp("base"))


# What is trained, and what is not


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}], ids=["full", "lora"])
def test_all_above_the_layer_stays_bit_for_bit_and_all_below_moves(tmp_path, kind, changes):
    made = trainer(tmp_path, world.network(kind), **changes)
    before = weights(made.inner)
    made.train()
    model = made.finished_model()
    after = weights(model)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    fixed = {name for name in before if above(name, model, 2)}
    assert fixed and fixed <= kept
    moving = {n for n in before if n not in fixed and (not changes or part_of(model)[n].layer)}
    if not changes:
        assert moving.isdisjoint(kept)
    assert len(moving - kept) >= 8


def test_a_tied_embedding_is_frozen_with_the_head_and_reported(tmp_path):
    made = trainer(tmp_path, world.network(tie_word_embeddings=True))
    before = made.inner.get_input_embeddings().weight.detach().clone()
    made.train()
    assert torch.equal(before, made.inner.get_input_embeddings().weight)
    assert made.parameter_report["tied_embedding"]


def test_an_untied_embedding_is_trained(tmp_path):
    made = trainer(tmp_path)
    before = made.inner.get_input_embeddings().weight.detach().clone()
    made.train()
    assert not torch.equal(before, made.inner.get_input_embeddings().weight)
    assert not made.parameter_report["tied_embedding"]


@pytest.mark.slow
def test_a_step_draws_groups_together_and_pushes_them_apart(tmp_path):
    made = trainer(tmp_path, max_steps=60, learning_rate=1e-3, per_device_train_batch_size=16)
    made.train()
    first, last = made.state.log_history[0], made.state.log_history[-2]
    assert last["circle_excess"] < 0.1 < first["circle_excess"]
    gap = [row["positive_similarity"] - row["negative_similarity"] for row in (first, last)]
    assert gap[1] > gap[0] + 0.5


# The loss


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("weights", ["paper", "sun2020"])
def test_the_loss_is_that_of_the_hidden_states_plus_the_regulariser(tmp_path, pooling, weights):
    made = trainer(tmp_path, pooling=pooling, weights=weights, nll_weight=0.1)
    model, rows = made.inner.eval(), [0, 3, 25, 30, 31]
    states, total, tokens = [], 0.0, 0
    template = resolve_template(TOKENIZER)
    for row in rows:  # one prompt at a time: no padding
        ids = torch.tensor([template.encode(TOKENIZER, world.prompts()[row])])
        out = model(ids, labels=ids, output_hidden_states=True)
        total, tokens = total + out.loss * (ids.numel() - 1), tokens + ids.numel() - 1
        state = out.hidden_states[2][0]
        states.append(state[-1] if pooling == "last" else state.mean(0))
    sides = torch.tensor([0, 0, 1, 1, 1])
    expected = circle_loss(torch.stack(states), sides, weights=weights) + 0.1 * total / tokens
    torch.testing.assert_close(made.compute_loss(model, batch_of(made, *rows)), expected)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gpt_neox", "opt", "gemma3_text", "phi3"])
def test_without_regulariser_the_pass_ends_at_the_layer_with_the_same_loss(tmp_path, kind):
    model = world.network(kind).eval()
    whole = trainer(tmp_path, model, nll_weight=1e-30)
    short = trainer(tmp_path, model, nll_weight=0)
    seen = []
    model.get_submodule(
        next(n for n, m in model.named_modules() if n.endswith(".3") and n.count(".") < 4)
    ).register_forward_hook(lambda *_: seen.append(1))
    loss = short.compute_loss(model, batch_of(short, 0, 1, 20, 21))
    assert not seen
    torch.testing.assert_close(loss, whole.compute_loss(model, batch_of(whole, 0, 1, 20, 21)))
    assert seen


def test_the_regulariser_predicts_the_prompt_the_answer_or_the_corpus(tmp_path):
    given = world.prompts(answers=True)
    made = {on: trainer(tmp_path, prompts=given, nll_on=on) for on in ("prompt", "response")}
    made["corpus"] = DCRTrainer(
        world.network(),
        config(tmp_path, nll_on="corpus"),
        given,
        TOKENIZER,
        corpus=[Pair("Say hello.", "Hello there.")],
    )
    read = {}
    for on, one in made.items():
        batch = batch_of(one, 0)
        kept = batch["labels"] != -100
        read[on] = TOKENIZER.decode(batch["input_ids"][kept])
    prompt = "<|im_start|>user\nHow do I kill a process?<|im_end|>\n<|im_start|>assistant\n"
    assert read == {
        "prompt": prompt,
        "response": "Like so.<|im_end|>",
        "corpus": "Hello there.<|im_end|>",
    }


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_an_answer_behind_the_prompt_does_not_change_its_features(tmp_path, pooling):
    model, given = world.network().eval(), world.prompts(answers=True)
    features = [
        one.compute_loss(model, batch_of(one, 0, 1, 20, 21), return_outputs=True)[1]["features"]
        for on in ("prompt", "response")
        for one in [trainer(tmp_path, model, given, nll_on=on, pooling=pooling)]
    ]
    torch.testing.assert_close(*features)


def test_the_corpus_has_no_part_in_the_pairs(tmp_path):
    model, given = world.network().eval(), world.prompts()
    alone = trainer(tmp_path, model, given)
    corpus = [Pair("Say hello.", "Hello " * 30)]
    with_corpus = DCRTrainer(
        model, config(tmp_path, nll_on="corpus"), given, TOKENIZER, corpus=corpus
    )
    features = [
        one.compute_loss(model, batch_of(one, 0, 20, 5), return_outputs=True)[1]["features"]
        for one in (alone, with_corpus)
    ]
    torch.testing.assert_close(*features)


def test_pairs_of_the_corpus_that_are_empty_or_cut_are_counted(tmp_path):
    corpus = [Pair("Say hello.", "Hello there."), Pair("Say.", ""), Pair("Say.", "Hello " * 300)]
    settings = config(tmp_path, nll_on="corpus")
    made = DCRTrainer(world.network(), settings, world.prompts(), TOKENIZER, corpus=corpus)
    counts = {name: n for name, n in made.data_report.items() if name.startswith("corpus")}
    assert counts == {"corpus": 2, "corpus_empty": 1, "corpus_cut": 1}


def test_the_log_shows_the_circle_loss_as_its_excess_over_the_floor(tmp_path):
    made = trainer(tmp_path, max_steps=1, nll_weight=0.5)
    made.train()
    row = made.state.log_history[0]
    order = list(made._get_train_sampler())[:8]
    sides = torch.tensor([made.train_dataset.groups[i] for i in order])
    floor = circle_loss_floor(sides).item()
    assert row["loss"] == pytest.approx(row["circle_excess"] + floor + 0.5 * row["nll"], rel=1e-5)


def descended(folder, batch, accumulate, **changes) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return weights and losses of plain gradient descent: Adam would hide a gradient's scale."""
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate}
    settings = {"optim": "sgd", "learning_rate": 0.1, "nll_weight": 0.1, "max_steps": 3}
    made = trainer(folder, **{**settings, **sizes, **changes})
    made.train()
    return weights(made.inner), [row["loss"] for row in made.state.log_history if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"nll_weight": 0.0, "pooling": "mean"}])
def test_accumulated_batches_train_as_one_large_batch(tmp_path, changes):
    start = weights(world.network())
    whole, losses = descended(tmp_path, 8, 1, **changes)
    for batch, accumulate in ((4, 2), (1, 8)):
        parts, again = descended(tmp_path, batch, accumulate, **changes)
        assert again == pytest.approx(losses, rel=1e-5)
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-6)
    assert max((whole[name] - start[name]).abs().max() for name in whole) > 1e-2


@pytest.mark.slow
def test_batches_that_keep_their_pairs_to_themselves_train_otherwise(tmp_path, monkeypatch):
    whole, losses = descended(tmp_path, 8, 1)
    monkeypatch.setattr("ntkprobe.training.features.Window.joined", lambda _, *rows: rows)
    parts, again = descended(tmp_path, 4, 2)
    assert abs(again[0] - losses[0]) > 0.1
    assert max((parts[name] - whole[name]).abs().max() for name in whole) > 1e-3


def test_accumulation_in_bfloat16_keeps_the_gradient(tmp_path):
    start = weights(world.network())
    moves = []
    for sizes in ((8, 1), (4, 2)):
        after, _ = descended(tmp_path, *sizes, bf16=True, max_steps=1)
        moves.append(torch.cat([(after[name] - start[name]).flatten() for name in start]))
    assert torch.cosine_similarity(*moves, dim=0) > 0.99
    assert moves[1].norm() == pytest.approx(moves[0].norm().item(), rel=0.05)


def test_both_passes_over_a_batch_have_the_same_dropout(tmp_path, monkeypatch):
    made = trainer(
        tmp_path,
        world.network("gpt2"),
        gradient_accumulation_steps=4,
        per_device_train_batch_size=2,
        max_steps=2,
    )
    seen, circle = [], made.circle_and_floor
    monkeypatch.setattr(
        made, "circle_and_floor", lambda *rows: seen.append(rows[0].detach()) or circle(*rows)
    )
    made.train()
    assert len(seen) == 8 and all(torch.equal(seen[i], seen[i - i % 4]) for i in range(8))
    assert not torch.equal(seen[0], seen[4])


# Runs: the same again, gone on with, finished, refused


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def read(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path, base):
    runs = [
        read(train_dcr(base, world.prompts(), config(tmp_path / f"{i}", seed=seed)))
        for i, seed in enumerate([0, 0, 1])
    ]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


class Interrupt(TrainerCallback):
    """Ctrl-C after step 5, a step after a checkpoint was due."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"lora_rank": 2, "gradient_accumulation_steps": 2}],
    ids=["full", "lora, accumulated"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, changes):
    base = world.saved(tmp_path / "base", "gpt2")  # has dropout
    settings = {"max_steps": 11, "save_strategy": "steps", "save_steps": 2, **changes}
    whole = read(train_dcr(base, world.prompts(), config(tmp_path / "whole", **settings)))
    with monkeypatch.context() as patch:
        patch.setattr("ntkprobe.training.callbacks.Progress.on_step_end", Interrupt().on_step_end)
        with pytest.raises(KeyboardInterrupt):
            train_dcr(base, world.prompts(), config(tmp_path / "cut", **settings))
    assert not (tmp_path / "cut/final").exists()
    assert same(whole, read(train_dcr(base, world.prompts(), config(tmp_path / "cut", **settings))))
    report = json.loads((tmp_path / "cut/training.json").read_text())
    assert [row["from_step"] for row in report["stages"] if "from_step" in row] == [4]


@pytest.mark.slow
def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path, base):
    settings = {"save_strategy": "steps", "save_steps": 2}
    final = train_dcr(base, world.prompts(), config(tmp_path / "run", **settings))
    whole = read(final)
    final.rename(tmp_path / "aside")
    (tmp_path / "run/checkpoint-4/trainer_state.json").unlink()
    again = train_dcr(base, world.prompts(), config(tmp_path / "run", **settings))
    assert same(whole, read(again))


def test_a_run_that_lacks_only_its_final_model_takes_no_further_step(tmp_path, base):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    final = train_dcr(base, world.prompts(), config(tmp_path / "run", **settings))
    whole = read(final)
    final.rename(tmp_path / "aside")
    assert same(whole, read(train_dcr(base, world.prompts(), config(tmp_path / "run", **settings))))
    assert not (tmp_path / "run/checkpoint-5").exists()


def test_a_finished_run_is_not_repeated(tmp_path, base):
    final = train_dcr(base, world.prompts(), config(tmp_path))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert train_dcr(base, world.prompts(), config(tmp_path, logging_steps=3)) == final
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"layer": 3}, ["layer = 2", "3"]), ({"learning_rate": 0.5}, ["learning_rate = 0.01", "0.5"])],
)
def test_another_setting_in_the_same_folder_is_refused_with_both_values(
    tmp_path, base, changes, words
):
    train_dcr(base, world.prompts(), config(tmp_path))
    with pytest.raises(UserError) as error:
        train_dcr(base, world.prompts(), config(tmp_path, **changes))
    assert all(word in str(error.value) for word in words)


def test_other_prompts_in_the_same_folder_are_refused(tmp_path, base):
    train_dcr(base, world.prompts(), config(tmp_path))
    with pytest.raises(UserError, match="the content of prompts"):
        train_dcr(base, world.prompts()[1:], config(tmp_path))


def test_a_folder_with_foreign_checkpoints_is_refused(tmp_path, base):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(UserError, match="checkpoints of something else"):
        train_dcr(base, world.prompts(), config(tmp_path))


def test_the_final_model_is_an_ordinary_checkpoint_with_its_tokenizer(tmp_path, base):
    final = train_dcr(base, world.prompts(), config(tmp_path, lora_rank=2))
    model = AutoModelForCausalLM.from_pretrained(final)
    assert not hasattr(model, "peft_config") and model.config.num_hidden_layers == 4
    assert AutoTokenizer.from_pretrained(final)("a b")["input_ids"] == TOKENIZER("a b")["input_ids"]


def test_the_final_configuration_is_the_bases(tmp_path, base):
    final = train_dcr(base, world.prompts(), config(tmp_path))
    old, new = (json.loads((Path(p) / "config.json").read_text()) for p in (base, final))
    tokens = {"eos_token_id", "pad_token_id"}  # transformers takes them from the tokenizer
    assert {k for k in old if old[k] != new[k]} <= tokens and old.keys() == new.keys()


@pytest.mark.parametrize(
    ("said", "left_out"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, ["temperature", "top_p"]),
        ({"temperature": 0.6, "do_sample": True}, []),
        ({"length_penalty": 2.0}, ["length_penalty"]),
    ],
)
def test_settings_of_another_way_to_generate_do_not_keep_a_run_from_being_saved(
    tmp_path, said, left_out
):
    start = Path(world.saved(tmp_path / "base"))
    (start / "generation_config.json").write_text(json.dumps(said))
    final = train_dcr(str(start), world.prompts(), config(tmp_path / "run", max_steps=1))
    kept = json.loads((final / "generation_config.json").read_text())
    assert {name: kept.get(name) for name in said} == {
        name: None if name in left_out else value for name, value in said.items()
    }
    notes = json.loads((tmp_path / "run/training.json").read_text()).get("notes", [])
    assert bool(left_out) == any("generation_config" in note for note in notes)


def test_callbacks_reach_the_trainer(tmp_path, base):
    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **_):
            self.steps += 1

    count = Count()
    train_dcr(base, world.prompts(), config(tmp_path), callbacks=[count])
    assert count.steps == 4


def test_save_steps_replace_saving_each_epoch():
    assert config("unused").save_strategy.value == "epoch"
    assert config("unused", save_steps=7).save_strategy.value == "steps"
    assert config("unused", save_steps=7, save_at=[1]).save_strategy.value == "no"


def test_what_is_trained_is_told_and_what_is_left_out_noted(tmp_path, base, capsys):
    long = PromptSet.from_texts({"toxic": ["How " * 100]})
    given = PromptSet(world.prompts().prompts + long.prompts)
    train_dcr(base, given, config(tmp_path, max_length=99))
    seen = capsys.readouterr().err
    assert "20 seemingly toxic and 20 toxic prompts of 40 to 49 tokens, template chat" in seen
    assert "1 prompts longer than 99 tokens left out" in seen
    notes = json.loads((tmp_path / "training.json").read_text())["notes"]
    assert notes == ["1 prompts longer than 99 tokens left out"]


def test_stages_are_timed_and_the_data_counted(tmp_path, base):
    normal = PromptSet.from_texts({"normal": ["Name a colour."]})
    given = PromptSet(world.prompts().prompts + normal.prompts)
    train_dcr(base, given, config(tmp_path))
    report = json.loads((tmp_path / "training.json").read_text())
    assert [row["stage"] for row in report["stages"]] == ["load", "encode", "train"]
    assert all(row["seconds"] >= 0 and row["peak_gib"] > 0 for row in report["stages"])
    counts = {"seemingly_toxic": 20, "toxic": 20, "other_groups": 1, "too_long": 0}
    assert counts.items() <= report["data"].items()


# Options


def test_fewer_toxic_prompts_can_be_drawn(tmp_path):
    made = [trainer(tmp_path, toxic_ratio=0.5, seed=seed) for seed in (0, 0, 1)]
    drawn = [[row["input_ids"] for row in one.train_dataset.rows] for one in made]
    assert made[0].train_dataset.groups == [0] * 20 + [1] * 10
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_number_of_each_side_is_drawn_with_the_seed_and_kept_beside_the_run(tmp_path, base):
    asked = dict(n_seemingly_toxic=12, n_toxic=7, max_steps=1)
    train_dcr(base, world.prompts(), config(tmp_path, **asked))
    data = pd.read_parquet(tmp_path / "data.parquet")
    assert data.groupby("group").size().to_dict() == {"seemingly_toxic": 12, "toxic": 7}
    assert set(data["prompt"]) < {p.text for p in world.prompts()}
    report = json.loads((tmp_path / "training.json").read_text())["data"]
    assert (report["seemingly_toxic"], report["toxic"], report["not_drawn"]) == (12, 7, 21)
    settings = yaml.safe_load((tmp_path / "training.yaml").read_text())
    assert settings["n_toxic"] == 7 and settings["n_seemingly_toxic"] == 12
    again, other = (drawn(world.prompts(), config(tmp_path, seed=s, **asked)) for s in (0, 1))
    assert list(data["prompt"]) == [p.text for p in again] != [p.text for p in other]


def test_the_toxic_prompts_drawn_do_not_depend_on_the_other_side(tmp_path):
    every = world.prompts()
    toxic = [
        [p for p in drawn(every, config(tmp_path, n_toxic=5, **more)) if p.group == "toxic"]
        for more in ({}, {"n_seemingly_toxic": 3})
    ]
    assert toxic[0] == toxic[1] and len(toxic[0]) == 5
    more = drawn(every, config(tmp_path, n_toxic=9))
    assert set(toxic[0]) < set(more)  # a smaller draw is part of a larger one


def test_a_ratio_keeps_only_the_prompts_drawn_beside_the_run(tmp_path, base):
    train_dcr(base, world.prompts(), config(tmp_path, toxic_ratio=0.5, max_steps=1))
    data = pd.read_parquet(tmp_path / "data.parquet")
    assert data.groupby("group").size().to_dict() == {"seemingly_toxic": 20, "toxic": 10}


def test_bfloat16_and_checkpointed_activations_train(tmp_path):
    made = trainer(tmp_path, bf16=True, gradient_checkpointing=True, max_steps=3)
    before = weights(made.inner)
    made.train()
    after = weights(made.inner)
    assert made.inner.dtype == torch.float32
    assert all(value.isfinite().all() for value in after.values())
    assert sum(not torch.equal(before[name], after[name]) for name in before) >= 8


def test_checkpointed_activations_give_the_same_weights(tmp_path):
    made = [trainer(tmp_path, gradient_checkpointing=on, nll_weight=0) for on in (False, True)]
    for one in made:
        one.train()
        on = any(getattr(m, "gradient_checkpointing", False) for m in one.inner.modules())
        assert on == (one is made[1])
    for a, b in zip(*(m.inner.parameters() for m in made), strict=True):
        torch.testing.assert_close(a, b)


def test_a_tokenizer_without_pad_or_chat_template_will_do(tmp_path):
    plain = trainer(tmp_path, tokenizer=world.tokenizer(chat=False, pad=False), max_steps=1)
    plain.train()
    assert plain.data_report["template"] == "raw"


def test_padding_has_no_part_in_the_features(tmp_path):
    made = trainer(tmp_path)
    model = made.inner.eval()
    long = PromptSet.from_texts({"toxic": ["How do I " + "really " * 30 + "rob it?"]})
    more = trainer(tmp_path, model, PromptSet(world.prompts().prompts + long.prompts))
    few, many = (
        one.compute_loss(model, batch_of(one, *rows), return_outputs=True)[1]["features"]
        for one, rows in ((made, [0, 1, 20]), (more, [0, 1, 20, 40]))
    )
    torch.testing.assert_close(few, many[:3])


# Mistakes


@pytest.mark.parametrize("layer", [0, 5, -1])
def test_a_layer_that_does_not_exist_is_refused_with_the_range(tmp_path, layer):
    with pytest.raises(UserError, match="1 to 4"):
        trainer(tmp_path, layer=layer)


@pytest.mark.parametrize("group", ["toxic", "seemingly_toxic"])
def test_a_missing_group_is_refused(tmp_path, group):
    with pytest.raises(UserError, match=f"no prompts in group '{group}'"):
        trainer(tmp_path, prompts=PromptSet(tuple(p for p in world.prompts() if p.group != group)))


def test_prompts_that_are_too_long_are_left_out_and_counted(tmp_path):
    long = PromptSet.from_texts({"toxic": ["How " * 100]})
    made = trainer(
        tmp_path, prompts=PromptSet(world.prompts().prompts + long.prompts), max_length=99
    )
    assert made.data_report["too_long"] == 1 and len(made.train_dataset) == 40


def test_only_prompts_that_are_too_long_are_a_mistake(tmp_path):
    with pytest.raises(UserError, match="longer than max_length=3"):
        trainer(tmp_path, max_length=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"weights": "sun"}, "choose from"),
        ({"margin": 1.0}, "0 < margin < 1"),
        ({"nll_on": "response"}, "no response for the prompt"),
        ({"nll_on": "corpus"}, "give a corpus"),
        ({"toxic_ratio": 3.0}, "needs 60 toxic prompts: there are 20"),
        ({"n_toxic": 500}, "n_toxic needs 500 toxic prompts: there are 20; .*another --n-toxic"),
        ({"n_seemingly_toxic": 21}, "needs 21 seemingly_toxic prompts: there are 20"),
        ({"n_toxic": 0}, "n_toxic is 0: give 1 or more"),
        ({"n_toxic": 5, "toxic_ratio": 1.0}, "both say how many"),
        ({"lora_rank": 2, "lora_targets": ["q"]}, "no linear map 'q'"),
        ({"template": "missing.jinja"}, "missing.jinja"),
        ({"max_length": 0}, "max_length is 0"),
        ({"dtype": "int8"}, "no dtype 'int8'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1: .* loss of its own"),
        ({"train_sampling_strategy": "sequential"}, "draws its batches by --sampling"),
        ({"eval_strategy": "steps"}, "no data to evaluate on"),
        ({"load_best_model_at_end": True}, "no data to evaluate on"),
        ({"per_device_train_batch_size": 2}, "a step of 2 prompts has no pairs"),
    ],
)
def test_mistakes_are_one_line(tmp_path, base, changes, words):
    with pytest.raises(UserError, match=words) as error:
        train_dcr(base, world.prompts(), config(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_two_prompts_are_no_step_and_three_or_accumulated_ones_are(tmp_path):
    for sides in ([0, 0], [0, 1], [1, 1], [1]):  # whatever they are: the loss is 0, nothing moves
        assert circle_loss(torch.randn(len(sides), 4), torch.tensor(sides)) == 0
    assert circle_loss(torch.randn(3, 4), torch.tensor([0, 0, 1])) > 0
    config(tmp_path, per_device_train_batch_size=3)
    config(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=3)


def test_a_model_that_is_not_there_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="no model"):
        train_dcr(str(tmp_path / "none"), world.prompts(), config(tmp_path / "run"))


def test_an_output_that_is_a_file_is_a_mistake(tmp_path, base):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        train_dcr(base, world.prompts(), config(tmp_path / "file"))


# Several processes


def test_parameters_in_pieces_are_refused(tmp_path):
    made = trainer(tmp_path)
    made.is_fsdp_enabled = True
    with pytest.raises(UserError, match="FSDP is not supported: its processes hold pieces"):
        install(made, "dcr", None)


WORKER = """
import sys; sys.path.insert(0, sys.argv[1])
import training_world as world
from ntkprobe.training.dcr import DCRConfig, train_dcr
settings = dict(layer=2, max_steps=4, learning_rate=0.1, optim="sgd", use_cpu=True)
settings |= {"nll_weight": float(sys.argv[6])}
settings |= {"per_device_train_batch_size": int(sys.argv[4])}
settings |= {"gradient_accumulation_steps": int(sys.argv[5])}
config = DCRConfig(output_dir=sys.argv[3], **settings)
train_dcr(sys.argv[2], world.prompts(), config)
"""


@pytest.mark.slow
@pytest.mark.parametrize("nll_weight", ["0.1", "0"])
def test_two_processes_that_accumulate_train_as_one_with_the_whole_batch(
    tmp_path, base, nll_weight
):
    (tmp_path / "worker.py").write_text(WORKER)
    here = str(Path(__file__).parents[1] / "helpers")
    for processes, *sizes in ((1, "8", "1"), (2, "2", "2")):
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        launch += ["--master-port=0", "--rdzv-endpoint=localhost:0", "--rdzv-backend=c10d"]
        args = ["worker.py", here, base, str(tmp_path / str(processes)), *sizes, nll_weight]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*launch, *args], check=True, cwd=tmp_path, env=env, timeout=300)
    one, two = (read(tmp_path / n / "final") for n in "12")
    logs = [_losses(tmp_path / n) for n in "12"]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5) and len(logs[0]) == 4
    start = read(Path(base))
    for name in one:  # plain gradient descent: Adam would hide a wrong scale of the gradient
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)
    assert max((one[name] - start[name]).abs().max() for name in one) > 1e-2


def _losses(folder: Path) -> list[float]:
    last = max(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    state = json.loads((last / "trainer_state.json").read_text())
    return [row["loss"] for row in state["log_history"] if "loss" in row]
