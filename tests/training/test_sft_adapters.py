"""The adapter of the alignment stage: where it sits, when it is saved, and how a run goes on."""

import json
import shutil
from pathlib import Path

import pytest
import training_world as world
import yaml
from peft import PeftModel
from sft_runs import TOKENIZER, adapter, config, report, train
from training_world import same
from transformers import AutoModelForCausalLM, AutoTokenizer

from ntkprobe.checkpoints import readiness
from ntkprobe.errors import UserError
from ntkprobe.training.adapters import attention_targets
from ntkprobe.training.sft import SFTConfig, encode_pairs, make_trainer


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*"))


# The adapter


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("qwen2", {"q_proj", "k_proj", "v_proj"}),
        ("opt", {"q_proj", "k_proj", "v_proj"}),
        ("gpt2", {"c_attn"}),
        ("gpt_neox", {"query_key_value"}),
        ("phi3", {"qkv_proj"}),
    ],
)
def test_the_adapter_sits_on_queries_keys_and_values_of_every_block(tmp_path, kind, targets):
    model = world.network(kind)
    assert set(attention_targets(model)) == targets
    rows, _ = encode_pairs(world.safe(), TOKENIZER, config(tmp_path))
    adapted = make_trainer(model, TOKENIZER, rows, config(tmp_path)).model
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == targets
    assert len(trained) == 2 * 4 * len(targets)


def test_the_adapter_has_the_papers_shape_and_the_base_is_named(tmp_path, base):
    final = train(base, tmp_path)
    made = json.loads((final / "adapter_config.json").read_text())
    assert (made["r"], made["lora_alpha"], made["lora_dropout"]) == (8, 32, 0.05)
    assert made["base_model_name_or_path"] == base
    assert (
        adapter(final)["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape[0]
        == 8
    )


def test_the_defaults_are_the_papers():
    made = SFTConfig(output_dir="unused")
    assert made.per_device_train_batch_size * made.gradient_accumulation_steps == 128
    assert (made.learning_rate, made.num_train_epochs, made.n_general, made.n_safe) == (
        1e-4,
        3,
        20000,
        1000,
    )
    assert made.get_warmup_steps(1000) == 30


def test_an_architecture_without_known_projections_is_told_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr("ntkprobe.training.adapters.APART", ())
    with pytest.raises(UserError, match=r"name modules with lora_targets; .*'q_proj'"):
        attention_targets(world.network())


def test_named_targets_replace_the_found_ones(tmp_path, base):
    final = train(base, tmp_path, lora_targets=["o_proj"])
    assert all("o_proj" in name for name in adapter(final))


def test_unknown_targets_are_refused(tmp_path, base):
    with pytest.raises(UserError, match="no linear map 'nothing'"):
        train(base, tmp_path, lora_targets=["nothing"])


# Checkpoints


def test_save_at_saves_exactly_there_and_at_the_end(tmp_path, base):
    train(base, tmp_path, save_at=[0, 1, 3, 99], max_steps=5)
    assert saved_steps(tmp_path) == [0, 1, 3, 5]
    assert all(readiness(tmp_path / f"checkpoint-{n}").state == "ready" for n in (0, 1, 3, 5))
    start = adapter(tmp_path / "checkpoint-0")
    assert all(bool(t.any()) == ("lora_A" in name) for name, t in start.items())


def test_save_steps_saves_regularly_and_at_the_end(tmp_path, base):
    train(base, tmp_path, save_steps=2, max_steps=5)
    assert saved_steps(tmp_path) == [2, 4, 5]


def test_the_final_adapter_is_the_last_checkpoint_and_loads(tmp_path, base):
    final = train(base, tmp_path)
    assert same(adapter(final), adapter(tmp_path / "checkpoint-4"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), final)
    assert model.active_adapter == "default"
    assert AutoTokenizer.from_pretrained(final).chat_template == TOKENIZER.chat_template


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, base, monkeypatch):
    settings = {"max_steps": 9, "save_at": [0, 1, 4]}  # 4 steps to an epoch
    whole = train(base, tmp_path / "whole", **settings)

    def interrupt(_self, args, state, control, **_):
        if state.global_step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ntkprobe.training.callbacks.Progress.on_step_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "cut", **settings)
    assert saved_steps(tmp_path / "cut") == [0, 1, 4]
    assert same(adapter(whole), adapter(train(base, tmp_path / "cut", **settings)))
    rows = report(tmp_path / "cut")["stages"]
    assert [row["from_step"] for row in rows if "from_step" in row] == [4]


@pytest.mark.slow
def test_a_run_stopped_before_its_first_checkpoint_begins_again(tmp_path, base):
    settings = {"save_at": [0, 4]}
    whole = adapter(train(base, tmp_path, **settings))
    (tmp_path / "final").rename(tmp_path / "aside")
    (tmp_path / "checkpoint-4/trainer_state.json").unlink()
    assert same(whole, adapter(train(base, tmp_path, **settings)))


@pytest.mark.slow
def test_another_seed_gives_another_adapter(tmp_path, base):
    runs = [adapter(train(base, tmp_path / str(i), seed=s)) for i, s in enumerate([0, 0, 1])]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_a_finished_run_is_not_repeated_and_another_is_refused(tmp_path, base):
    final = train(base, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert train(base, tmp_path) == final
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=r"lora_rank = 8.*4"):
        train(base, tmp_path, lora_rank=4)


def test_a_template_or_tokenizer_edited_since_is_another_run(tmp_path, base):
    start = shutil.copytree(base, tmp_path / "base")
    template, folder = tmp_path / "own.jinja", tmp_path / "run"
    template.write_text(world.tokenizer().chat_template)
    final = train(str(start), folder, template=str(template))
    assert train(str(start), folder, template=str(template)) == final
    template.write_text(world.tokenizer().chat_template + "\n")
    with pytest.raises(UserError, match="the content of template_text"):
        train(str(start), folder, template=str(template))
    template.write_text(world.tokenizer().chat_template)
    settings = json.loads((start / "tokenizer_config.json").read_text())
    changed = json.dumps(settings | {"eos_token": "<other>"})
    (start / "tokenizer_config.json").write_text(changed)
    with pytest.raises(UserError, match="the content of tokenizer"):
        train(str(start), folder, template=str(template))
    record = yaml.safe_load((folder / "training.yaml").read_text())
    for name in ("template_text", "tokenizer"):  # as in folders of earlier versions
        del record["digests"][name]
    (folder / "training.yaml").write_text(yaml.safe_dump(record))
    assert train(str(start), folder, template=str(template)) == final


def test_a_run_from_before_a_setting_existed_had_its_default(tmp_path, base):
    final = train(base, tmp_path)
    record = tmp_path / "training.yaml"
    settings = yaml.safe_load(record.read_text())
    del settings["prefill_share"]
    record.write_text(yaml.safe_dump(settings))
    assert train(base, tmp_path) == final
    with pytest.raises(UserError, match=r"prefill_share = 0.5, now it is 0.25"):
        train(base, tmp_path, prefill_share=0.25)
