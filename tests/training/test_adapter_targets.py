"""Laws of where LoRA goes, on models whose blocks are not alike."""

import pytest
import training_world as world
from torch import nn

from ntkprobe.errors import UserError
from ntkprobe.models.architecture import decoder_layers
from ntkprobe.training.adapters import attention_targets, with_lora
from ntkprobe.training.dcr import DCRConfig, DCRTrainer

HYBRID = dict(attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4)
HYBRID |= dict(num_experts=2, num_experts_per_tok=1)
EXPERTS = dict(first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2, n_group=1)
EXPERTS |= dict(topk_group=1, moe_intermediate_size=16, q_lora_rank=8, kv_lora_rank=8)
EXPERTS |= dict(qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
SHAPE = {"rank": 2, "alpha": 4, "dropout": 0.0, "seed": 0}


def adapted_names(model: nn.Module) -> set[str]:
    return {n.split(".lora_")[0].removeprefix("base_model.model.") for n, _ in trained(model)}


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def linear_maps(model: nn.Module, layers: int) -> set[str]:
    blocks = decoder_layers(model)[:layers]
    inside = {id(m) for block in blocks for m in block.modules() if isinstance(m, nn.Linear)}
    return {name for name, m in model.named_modules() if id(m) in inside}


def contrasted(folder, model: nn.Module, **changes) -> nn.Module:
    settings = {"layer": 2, "lora_rank": 2, "lora_dropout": 0.0, **changes}
    config = DCRConfig(output_dir=str(folder), use_cpu=True, **settings)
    return DCRTrainer(model, config, world.prompts(), world.tokenizer()).model


def test_attention_is_found_where_the_first_block_has_none():
    model = world.network("jamba", **HYBRID)
    names = attention_targets(model)
    assert names == ["q_proj", "k_proj", "v_proj"]
    blocks = {name.split(".")[2] for name in adapted_names(with_lora(model, names, **SHAPE))}
    assert blocks == {"1", "3"}


def test_dcrs_lora_is_on_all_linear_maps_of_blocks_that_are_not_alike(tmp_path):
    model = world.network("jamba", **HYBRID)
    every = linear_maps(model, 2)
    assert len({name.rpartition(".")[2] for name in every} & {"q_proj", "in_proj"}) == 2
    assert adapted_names(contrasted(tmp_path, model)) == every


def test_experts_of_all_blocks_are_not_adapted_in_the_place_of_some_linear_maps(tmp_path):
    with pytest.raises(UserError, match=r"peft also adapts .*experts: give others, of \['down_p"):
        contrasted(tmp_path, world.network("deepseek_v3", **EXPERTS))
    names = ["q_a_proj", "kv_b_proj"]
    made = contrasted(tmp_path, world.network("deepseek_v3", **EXPERTS), lora_targets=names)
    assert {name.rpartition(".")[2] for name in adapted_names(made)} == set(names)


@pytest.mark.parametrize(("kind", "changes"), [("mamba", {}), ("deepseek_v3", EXPERTS)])
def test_what_peft_refuses_is_one_line_that_names_the_linear_maps(tmp_path, kind, changes):
    with pytest.raises(UserError, match=r"peft puts no adapter there: .*a block has \[") as error:
        contrasted(tmp_path, world.network(kind, **changes), lora_dropout=0.1)
    assert "\n" not in str(error.value) and "base_layer" not in str(error.value)
