"""What the contrastive stage trains, and by which loss, on random models of four blocks."""

import pytest
import torch
import training_world as world
from dcr_runs import TOKENIZER, batch_of, config, trainer, weights

from ntkprobe.models.parameters import part_of
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.training.data import Pair
from ntkprobe.training.dcr import DCRTrainer
from ntkprobe.training.losses import circle_loss, circle_loss_floor

# What is trained, and what is not


def above(name: str, model, layer: int) -> bool:
    part = part_of(model)[name]
    return part.kind in ("norm", "head", "embed+head") or (part.layer or 0) > layer


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


# Accumulation, precision and memory


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
