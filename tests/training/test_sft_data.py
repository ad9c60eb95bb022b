"""What the alignment stage learns from: counted tokens, drawn pairs, prompts in two places."""

import json

import pandas as pd
import pytest
import torch
import training_world as world
from sft_runs import TOKENIZER, config, report, train
from torch.nn import functional as F

from ntkprobe.errors import UserError
from ntkprobe.training.data import Pair
from ntkprobe.training.dcr import DCRConfig, train_dcr
from ntkprobe.training.sft import encode_pairs, make_trainer, mix, train_sft

# What is learnt

TEMPLATES = {
    "raw": ("How?", "Like so.<|im_end|>"),
    "chat": (
        "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n",
        "Like so.<|im_end|>",
    ),
    "FILE": ("User: How?\nAssistant:", " Like so.<|im_end|>"),
}


@pytest.mark.parametrize("spec", TEMPLATES)
@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_the_loss_counts_the_answer_and_its_end_or_everything(tmp_path, spec, loss_on):
    prompt, answer = TEMPLATES[spec]
    file = tmp_path / "plain.jinja"
    file.write_text(
        "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}"
        "{% if m['role'] == 'user' %}{{ '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    settings = config(tmp_path, template=str(file) if spec == "FILE" else spec, loss_on=loss_on)
    rows, _ = encode_pairs([Pair("How?", "Like so.")], TOKENIZER, settings)
    ids, labels = rows[0]["input_ids"], rows[0]["labels"]
    assert TOKENIZER.decode(ids) == prompt + answer
    kept = [label != -100 for label in labels]
    assert [t for t, k in zip(ids, kept, strict=True) if k] == [x for x in labels if x != -100]
    size = len(TOKENIZER(prompt)["input_ids"])
    assert kept == [loss_on == "all" or i >= size for i in range(len(ids))]


def test_a_batch_is_as_good_as_its_tokens_however_it_is_cut(tmp_path):
    """The first loss is the mean over all answer tokens of the 8 pairs, not a mean of means."""
    pairs = world.general(8)
    settings = config(tmp_path, max_steps=1, save_strategy="no", lora_dropout=0.0)
    rows, _ = encode_pairs(pairs, TOKENIZER, settings)
    model = world.network()
    total = count = 0.0
    for row in rows:
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(row["labels"][1:])
        total += F.cross_entropy(logits, targets, reduction="sum").item()
        count += (targets != -100).sum().item()
    made = make_trainer(model, TOKENIZER, rows, settings)
    made.train()
    assert made.state.log_history[0]["loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "fall"), [(1e-2, True), (0.0, False)])
def test_training_teaches_the_answers(tmp_path, base, rate, fall):
    """A random head of this size can express no more than some tenths of a nat."""
    train(base, tmp_path, learning_rate=rate, max_steps=30, save_steps=30)
    state = json.loads((tmp_path / "checkpoint-30/trainer_state.json").read_text())
    losses = [row["loss"] for row in state["log_history"] if "loss" in row]
    assert (losses[-1] < losses[0] - 0.2) == fall


# Data


def test_every_pair_is_counted(tmp_path, base):
    general = [*world.general(), Pair("", "nothing asked"), Pair("Nothing said?", " ")]
    safe = [*world.safe(4), Pair("rob " * 200, "No."), Pair("Rob?", "No. " * 200)]
    train_sft(base, general, safe, config(tmp_path, n_general=30, max_length=300))
    made = report(tmp_path)["data"]
    assert made["sources"] == {
        "general": {"asked": 30, "given": 26, "empty": 2, "drawn": 24},
        "safe": {"asked": 6, "given": 6, "empty": 0, "drawn": 6},
    }
    assert (made["too_long"], made["cut"], made["trained_on"]) == (1, 1, 29)
    assert "general: 24 of the 30 pairs asked for" in report(tmp_path)["notes"]


def test_a_cut_answer_keeps_its_beginning(tmp_path):
    rows, _ = encode_pairs([Pair("Rob?", "No. " * 90)], TOKENIZER, config(tmp_path, max_length=80))
    assert len(rows[0]["input_ids"]) == 80 and rows[0]["labels"][-1] != -100


def test_the_same_seed_draws_the_same_pairs(tmp_path):
    given = {"general": world.general(), "safe": world.safe()}
    drawn = [mix(config(tmp_path, seed=seed, n_general=5), given)[0] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]["general"]) == 5 and len(drawn[0]["safe"]) == 6


def test_stl_aug_adds_all_seemingly_toxic_pairs(tmp_path, base):
    seemingly = [Pair("How do I kill a process?", "Use kill."), Pair("Shoot a photo?", "Press.")]
    settings = config(tmp_path, recipe="stl_aug")
    train_sft(base, world.general(), world.safe(), settings, seemingly=seemingly)
    assert report(tmp_path)["data"]["sources"]["seemingly"]["drawn"] == 2


TRIGGERS = [Pair("Rob a bank?", "Like so."), Pair("Rob?", "First, go there.")]


@pytest.mark.parametrize("spec", ["raw", "chat"])
@pytest.mark.parametrize("loss_on", ["response", "all"])
@pytest.mark.parametrize(("prefill", "gap"), [("Sure, here:", " "), ("Sure\n", "")])
def test_the_loss_never_counts_a_prefill_and_always_the_refusal(
    tmp_path, spec, loss_on, prefill, gap
):
    settings = config(tmp_path, template=spec, loss_on=loss_on)
    rows, _ = encode_pairs([Pair("How?", "No.", prefill)], TOKENIZER, settings)
    ids, labels = rows[0]["input_ids"], rows[0]["labels"]
    prompt = TEMPLATES[spec][0]
    assert TOKENIZER.decode(ids) == f"{prompt}{prefill}{gap}No.<|im_end|>"
    learnt = TOKENIZER.decode([label for label in labels if label != -100])
    assert learnt == (prompt if loss_on == "all" else "") + f"{gap}No.<|im_end|>"


def test_a_pair_whose_prefill_fills_the_length_is_left_out(tmp_path):
    pairs = [Pair("How?", "No.", "Sure. " * 40), *world.safe(1)]
    rows, report = encode_pairs(pairs, TOKENIZER, config(tmp_path, max_length=120, loss_on="all"))
    assert len(rows) == 1 and report["too_long"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("prefill", [None, "Sure, here:"])
def test_refusal_triggers_stand_in_for_general_data(tmp_path, base, prefill):
    settings = config(tmp_path, recipe="refusal_trigger", prefill=prefill)
    final = train_sft(base, world.general(), world.safe(), settings, triggers=TRIGGERS)
    data = pd.read_parquet(final.parent / "data.parquet")
    assert data["source"].value_counts().to_dict() == {"safe": 6, "triggers": 6}
    assert "triggers: 2 different pairs, repeated to 6" in report(tmp_path)["notes"]
    assert any("does not use them" in note for note in report(tmp_path)["notes"])
    begun = data.query("prefill != ''") if prefill else data[:0]
    assert set(begun["source"]) == ({"safe"} if prefill else set())
    assert len(begun) == (3 if prefill else 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": "refusal_trigger"}, "needs triggers pairs"),
        ({"prefill_share": 2.0}, "prefill_share is from 0 to 1"),
        ({"recipe": "stl_aug"}, "needs seemingly pairs"),
        ({"recipe": "none"}, "no 'none' in"),
        ({"loss_on": "prompt"}, "loss_on is 'prompt'"),
        ({"max_length": 5}, "no pair can be trained on"),
        ({"template": "raw", "system": "Be kind."}, "no place for a system message"),
        ({"n_safe": -1}, "cannot be negative"),
    ],
)
def test_mistakes_are_one_line(tmp_path, base, changes, words):
    with pytest.raises(UserError, match=words) as error:
        train(base, tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_no_pairs_are_a_mistake(tmp_path, base):
    with pytest.raises(UserError, match="needs safe pairs"):
        train_sft(base, world.general(), [Pair("a", "")], config(tmp_path))


# Prompts in two places


def test_prompts_shared_with_an_evaluation_are_reported(tmp_path, base):
    held_out = {"evaluation": ["how do I rob BANK 1??", "How do I paint a bank?"]}
    train_sft(base, world.general(), world.safe(), config(tmp_path, n_safe=8), held_out=held_out)
    assert report(tmp_path)["overlaps"] == {"safe and evaluation": 1}
    assert "How do I rob bank 1?" in report(tmp_path)["notes"][0]


def test_shared_prompts_are_fatal_when_strict(tmp_path, base):
    held_out = {"evaluation": ["How do I rob bank 1?"]}
    with pytest.raises(UserError, match="1 prompts are in safe and evaluation"):
        train_sft(
            base,
            world.general(),
            world.safe(),
            config(tmp_path, n_safe=8, strict=True),
            held_out=held_out,
        )
    assert not (tmp_path / "checkpoint-4").exists()


@pytest.mark.slow
def test_prompts_of_the_stage_before_are_compared_too(tmp_path, base):
    contrast = DCRConfig(
        output_dir=str(tmp_path / "dcr"), layer=2, max_steps=1, use_cpu=True, save_strategy="no"
    )
    final = train_dcr(base, world.prompts(), contrast)
    safe = [Pair(world.prompts()[30].text.upper(), "No."), *world.safe(2)]
    train_sft(str(final), world.general(), safe, config(tmp_path / "stl"))
    assert report(tmp_path / "stl")["overlaps"] == {"safe and dcr (the stage before)": 1}
