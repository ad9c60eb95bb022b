"""Every weight of a file is used, or its absence changes nothing, or it is refused by name."""

import json
import shutil
import warnings
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from architectures import ARCHITECTURES, build
from safetensors.torch import load_file, save_file
from tiny_runs import full_checkpoint, tiny_adapter, tiny_model, tiny_tokenizer
from transformers import (
    ApertusConfig,
    AutoModelForCausalLM,
    Glm4MoeConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from ntkprobe import mitigations
from ntkprobe.checkpoints import LoadSettings, adapted, load_checkpoint, load_model, readiness
from ntkprobe.checkpoints.identification import architecture_named
from ntkprobe.errors import MeasurementWarning, UserError
from ntkprobe.evaluation.judges.guard_models import GuardModel
from ntkprobe.mitigations.ssd import load_draft
from ntkprobe.mitigations.surgical import Surgical

IDS = torch.arange(6)[None]
CPU = LoadSettings(device="cpu")
SIZES = dict(
    vocab_size=32, hidden_size=8, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2
)


def llama(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": 2, **changes})).eval()


def saved(model: torch.nn.Module, folder: Path, **config: object) -> Path:
    """Save a model, then say something else in its config.json."""
    model.save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def with_tensors(folder: Path, **tensors: torch.Tensor) -> Path:
    """Put further tensors into a model's file; `__` stands for a dot."""
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    whole = {**load_file(folder / "model.safetensors"), **named}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    return folder


def no_remark(folder: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeasurementWarning)
        return load_model(str(folder), CPU)


# --- used ---


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_of_any_family_is_loaded_whole_and_one_tensor_more_is_refused(name, tmp_path):
    model = build(name)
    folder = saved(model, tmp_path / "model")
    assert torch.allclose(no_remark(folder)(IDS).logits, model(IDS).logits, atol=1e-6)
    with_tensors(folder, model__further__weight=torch.ones(3))
    with pytest.raises(UserError, match=r"no place for \(model.further.weight\)"):
        load_model(str(folder), CPU)


def test_a_head_of_its_own_is_used_whatever_the_config_says_and_an_equal_one_is_tied(tmp_path):
    untied = llama(tie_word_embeddings=False)
    folder = saved(untied, tmp_path / "untied", tie_word_embeddings=True)
    assert torch.allclose(no_remark(folder)(IDS).logits, untied(IDS).logits, atol=1e-6)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    tied = no_remark(with_tensors(folder, lm_head__weight=embedding.clone()))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


# --- not used ---


@pytest.mark.parametrize(
    "trained, told, named, advice",
    [
        (dict(attention_bias=True), dict(attention_bias=False), "self_attn.k_proj.bias", "biases"),
        (dict(mlp_bias=True), dict(mlp_bias=False), "mlp.down_proj.bias", "biases"),
        (dict(num_hidden_layers=3), dict(num_hidden_layers=2), "model.layers.2", "there are 2"),
    ],
)
def test_weights_that_the_config_does_not_know_are_refused(trained, told, named, advice, tmp_path):
    folder = saved(llama(**trained), tmp_path / "odd", **told, layer_types=None)
    with pytest.raises(UserError, match=rf"no place for .*{named}.*{advice}"):
        load_model(str(folder), CPU)
    no_remark(saved(llama(**trained), tmp_path / "honest", **trained, layer_types=None))


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_is_no_language_model(tied, tmp_path):
    config = Qwen2Config(**SIZES, num_hidden_layers=2, tie_word_embeddings=tied, num_labels=1)
    folder = saved(Qwen2ForSequenceClassification(config), tmp_path / "reward")
    with pytest.raises(UserError, match=r"score.weight"):
        load_model(str(folder), CPU)


def test_names_that_begin_otherwise_are_named_with_what_is_missing(tmp_path):
    folder = saved(llama(), tmp_path / "wrapped")
    tensors = load_file(folder / "model.safetensors")
    renamed = {f"_orig_mod.{name}": value for name, value in tensors.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights for lm_head.* no place for _orig_mod"):
        load_model(str(folder), CPU)


def test_a_tensor_stored_under_both_its_names_is_refused(tmp_path):
    folder = saved(llama(), tmp_path / "twice")
    norm = load_file(folder / "model.safetensors")["model.norm.weight"]
    with pytest.raises(UserError, match=r"model.norm.weight twice"):
        load_model(str(with_tensors(folder, norm__weight=norm + 1)), CPU)


# --- computed ---


def rotary(scale: float = 1.0) -> torch.Tensor:
    return scale * 10000.0 ** -(torch.arange(2) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rotary_frequencies_of_old_files_are_left_out_if_they_are_the_models_own(dtype, tmp_path):
    folder = saved(llama(), tmp_path / "old")
    key = "model__layers__0__self_attn__rotary_emb__inv_freq"
    no_remark(with_tensors(folder, **{key: rotary().to(dtype)}))
    with pytest.raises(UserError, match="inv_freq"):  # stretched for a longer context
        load_model(str(with_tensors(folder, **{key: rotary(0.25).to(dtype)})), CPU)


@pytest.mark.parametrize("name, key", [("gpt2", "h__0__attn__bias"), ("gpt_neox", "")])
def test_causal_masks_of_old_files_are_left_out_and_a_bias_of_that_name_is_not(name, key, tmp_path):
    folder = saved(build(name), tmp_path / name)
    key = key or "gpt_neox__layers__0__attention__bias"
    mask = torch.ones(1, 1, 32, 32).tril()
    banded = mask - mask.tril(-4)
    fill = {key.replace("bias", "masked_bias"): torch.tensor(-1e9)}
    for value in (mask, mask.bool(), banded.bool()):
        no_remark(with_tensors(folder, **{key: value}, **fill))
    for value in (torch.ones(16), mask * 0.5, mask.flip(-1)):
        with pytest.raises(UserError, match=key.replace("__", ".")):
            load_model(str(with_tensors(folder, **{key: value.contiguous()})), CPU)


# --- documented ---


def long_model(blocks: int) -> torch.nn.Module:
    sizes = dict(hidden_size=4, intermediate_size=4, vocab_size=32, head_dim=2)
    heads = dict(num_attention_heads=1, num_key_value_heads=1, first_k_dense_replace=99)
    torch.manual_seed(0)
    config = Glm4MoeConfig(**sizes, **heads, num_hidden_layers=blocks)
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_class_that_ignores_block_46_does_not_hide_a_block_that_was_trained(tmp_path):
    folder = saved(long_model(47), tmp_path / "long", num_hidden_layers=46)
    with pytest.raises(UserError, match=r"model.layers.46.*there are 46 blocks"):
        load_model(str(folder), CPU)
    # The block that predicts one token further has a projection of embedding and state.
    with_tensors(folder, model__layers__46__eh_proj__weight=torch.ones(4, 8))
    with pytest.warns(MeasurementWarning, match="Glm4MoeForCausalLM does not use"):
        found = load_model(str(folder), CPU)
    assert len(found.model.layers) == 46


def test_a_pattern_to_be_ignored_hides_no_parameter_of_a_module_that_is_there(tmp_path):
    folder = with_tensors(
        saved(build("gpt_neox"), tmp_path / "neox"),
        gpt_neox__layers__0__attention__bias=torch.randn(16),
    )
    with pytest.raises(UserError, match=r"attention\.bias"):
        load_model(str(folder), CPU)


# --- files ---


def test_an_index_and_its_shards_must_list_the_same(tmp_path):
    folder = full_checkpoint(tmp_path, 10, max_shard_size="2KB")
    index = folder / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    load_model(str(folder), CPU)
    for extra in ({**told["weight_map"], "model.extra.weight": shard.name}, None):
        changed = extra or {k: v for k, v in told["weight_map"].items() if "norm" not in k}
        index.write_text(json.dumps({**told, "weight_map": changed}))
        assert "differ" in readiness(folder).reason
        with pytest.raises(UserError, match="differ"):
            load_model(str(folder), CPU)


def test_a_shard_that_the_index_does_not_list_is_named(tmp_path):
    folder = full_checkpoint(tmp_path, 10, max_shard_size="2KB")
    further = "model-00099-of-00099.safetensors"
    shutil.copy(next(folder.glob("model-*.safetensors")), folder / further)
    assert f"{further} is not listed" in readiness(folder).reason
    with pytest.raises(UserError, match="not listed"):
        load_model(str(folder), CPU)


# --- every route ---


@pytest.fixture
def biased(tmp_path):
    """A tiny model whose file holds biases that its config.json does not know."""
    folder = saved(llama(attention_bias=True), tmp_path / "biased", attention_bias=False)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_no_route_into_memory_leaves_weights_out(biased, monkeypatch):
    name = str(biased)
    routes = {
        "checkpoint": lambda: load_checkpoint(biased, CPU),
        "named": lambda: load_model(name, CPU),
        "draft": lambda: load_draft(name, tiny_model(), tiny_tokenizer()),
        "guard": lambda: GuardModel(name, CPU, 1, 4).network,
    }
    for route in routes.values():
        with pytest.raises(UserError, match="no place for"):
            route()


def test_a_model_of_the_hub_is_held_to_the_same(biased, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    snapshot = cache / "models--someone--model" / "snapshots" / "abc"
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    shutil.copytree(biased, snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    with pytest.raises(UserError, match="no place for"):
        load_model("someone/model", CPU)
    shutil.rmtree(snapshot)
    llama().save_pretrained(snapshot)
    with_tensors(snapshot, model__layers__0__self_attn__rotary_emb__inv_freq=rotary())
    found = load_model("someone/model", CPU)
    assert torch.allclose(found(IDS).logits, llama()(IDS).logits, atol=1e-6)


def test_an_adapter_with_a_tensor_too_many_is_refused(tmp_path):
    tiny_adapter(tiny_model(), seed=1).save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    name = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"
    save_file({**load_file(file), name: torch.ones(2, 8)}, file)
    with pytest.raises(UserError, match="does not fit"), adapted(tiny_model(), tmp_path / "a"):
        pass


def test_a_mitigation_with_a_tensor_too_many_is_refused(tmp_path):
    fitted = Surgical(false_refusal=torch.ones(8), fitted_on={"hidden_size": 8})
    place = mitigations.save(fitted, tmp_path / "m")
    file = place / "mitigation.safetensors"
    mitigations.load(place)
    save_file({**load_file(file), "further": torch.ones(2)}, file)
    with pytest.raises(UserError, match="further"):
        mitigations.load(place)


def test_shards_of_single_processes_are_not_mixed_into_whole_weights(tmp_path):
    folder = saved(llama(), tmp_path / "model")
    name = "model.layers.0.mlp.up_proj.weight"
    half = {name: torch.zeros(8, 8)}  # the rows of a second process
    about = {"format": "pt", "DCP_SHARDING_INFO": json.dumps({name: {"saved_offsets": [8, 0]}})}
    shard = folder / "shard-00002-model-00001-of-00001.safetensors"
    save_file(half, shard, about)
    loaded = LlamaForCausalLM.from_pretrained(folder).state_dict()[name]
    assert not loaded[8:].any() and loaded[:8].any()  # as transformers has it
    with pytest.raises(UserError, match=f"holds {shard.name} beside whole weights"):
        load_model(str(folder), CPU)
    shard.rename(folder / "elsewhere")
    assert load_model(str(folder), CPU).state_dict()[name][8:].any()


def test_shards_of_single_processes_alone_are_named_with_what_merges_them(tmp_path):
    folder = saved(llama(), tmp_path / "model")
    shard = folder / "shard-00001-model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(shard)
    assert readiness(folder).state == "refused"
    with pytest.raises(UserError, match="consolidate_distributed_checkpoint"):
        load_model(str(folder), CPU)


def routed(folder: Path) -> Path:
    """Save a mixture whose router's correction is a buffer that training moves."""
    experts = dict(n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1)
    config = Glm4MoeConfig(
        **SIZES, **experts, num_hidden_layers=1, moe_intermediate_size=8, first_k_dense_replace=0
    )
    model = AutoModelForCausalLM.from_config(config)
    return with_tensors(saved(model, folder), **{CORRECTION: torch.tensor([3.0, 2.0, 1.0, 0.0])})


CORRECTION = "model.layers.0.mlp.gate.e_score_correction_bias"


def test_a_trained_buffer_that_the_file_lacks_is_missed(tmp_path):
    folder = routed(tmp_path / "model")
    assert load_model(str(folder), CPU).state_dict()[CORRECTION][0] == 3
    tensors = load_file(folder / "model.safetensors")
    del tensors[CORRECTION]  # as a trainer does that writes named_parameters()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"lacks weights for {CORRECTION}"):
        load_model(str(folder), CPU)


def test_a_constant_that_is_stored_may_not_be_missing(tmp_path):
    """transformers leaves it as the memory was."""
    folder = saved(
        AutoModelForCausalLM.from_config(ApertusConfig(**SIZES, num_hidden_layers=1)),
        tmp_path / "model",
    )
    tensors = load_file(folder / "model.safetensors")
    constants = [name for name in tensors if name.endswith(("act_fn.beta", "act_fn.eps"))]
    assert constants
    kept = {name: value for name, value in tensors.items() if name not in constants}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights for .*act_fn\.beta, .*act_fn\.eps"):
        load_model(str(folder), CPU)


def test_a_trained_buffer_that_is_no_number_is_refused(tmp_path):
    folder = with_tensors(
        routed(tmp_path / "model"), **{CORRECTION: torch.tensor([1.0, float("nan"), 0.0, 0.0])}
    )
    with pytest.raises(UserError, match=f"NaN or infinity in {CORRECTION}"):
        load_model(str(folder), CPU)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_attention_heads": 0},
        {"head_dim": 0},
        {"dtype": []},
        {"model_type": ["llama"]},
        {"hidden_size": "8"},
    ],
    ids=str,
)
def test_a_value_that_no_model_has_is_one_line(tmp_path, wrong):
    folder = saved(llama(), tmp_path / "model", **wrong)
    with pytest.raises(UserError) as refused:
        load_model(str(folder), CPU)
    assert "\n" not in str(refused.value)
    assert architecture_named(str(folder)) in (None, "llama, 2 layers of 8")
