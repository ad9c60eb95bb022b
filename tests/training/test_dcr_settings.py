"""Settings of the contrastive stage: the prompts that they draw, and those that are refused."""

import json

import pandas as pd
import pytest
import torch
import training_world as world
import yaml
from dcr_runs import config, trainer

from ntkprobe.errors import UserError
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.training.contrast_data import drawn
from ntkprobe.training.dcr import train_dcr
from ntkprobe.training.losses import circle_loss


def test_save_steps_replace_saving_each_epoch():
    assert config("unused").save_strategy.value == "epoch"
    assert config("unused", save_steps=7).save_strategy.value == "steps"
    assert config("unused", save_steps=7, save_at=[1]).save_strategy.value == "no"


# Prompts


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


def test_a_tokenizer_without_pad_or_chat_template_will_do(tmp_path):
    plain = trainer(tmp_path, tokenizer=world.tokenizer(chat=False, pad=False), max_steps=1)
    plain.train()
    assert plain.data_report["template"] == "raw"


def test_prompts_that_are_too_long_are_left_out_and_counted(tmp_path):
    long = PromptSet.from_texts({"toxic": ["How " * 100]})
    made = trainer(
        tmp_path, prompts=PromptSet(world.prompts().prompts + long.prompts), max_length=99
    )
    assert made.data_report["too_long"] == 1 and len(made.train_dataset) == 40


# Mistakes


@pytest.mark.parametrize("layer", [0, 5, -1])
def test_a_layer_that_does_not_exist_is_refused_with_the_range(tmp_path, layer):
    with pytest.raises(UserError, match="1 to 4"):
        trainer(tmp_path, layer=layer)


@pytest.mark.parametrize("group", ["toxic", "seemingly_toxic"])
def test_a_missing_group_is_refused(tmp_path, group):
    with pytest.raises(UserError, match=f"no prompts in group '{group}'"):
        trainer(tmp_path, prompts=PromptSet(tuple(p for p in world.prompts() if p.group != group)))


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
