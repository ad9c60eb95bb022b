"""Laws of the selection grammar and of the parts of a model."""

import pytest
from architectures import ARCHITECTURES, build, with_lora
from hypothesis import given
from hypothesis import strategies as st

from ntkprobe.errors import UserError
from ntkprobe.models.parameters import (
    ParameterSelection,
    Part,
    adapter_parameters,
    effective_parameters,
    part_of,
    remarks,
    requiring_grad,
)

TERMS = st.sampled_from(
    ["all", "lora", "embed", "norm", "head", "below:3", "last:2", "re:q_proj", r"re:\d+\.mlp"]
)


def names(spec, model):
    return ParameterSelection.parse(spec).names(model)


@given(st.lists(TERMS, min_size=1, max_size=4))
def test_a_selection_reads_back_as_it_is_written(terms):
    selection = ParameterSelection.parse("+".join(terms))
    assert selection.terms == tuple(terms)
    assert ParameterSelection.parse(str(selection)) == selection


def test_a_selection_parsed_twice_is_itself():
    selection = ParameterSelection.parse("last:2+head")
    assert ParameterSelection.parse(selection) is selection


def test_a_pattern_may_hold_a_plus():
    assert ParameterSelection.parse(r"re:layers\.\d+\.mlp+head").terms == (
        r"re:layers\.\d+\.mlp",
        "head",
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_is_every_parameter_once(name):
    model = build(name)
    assert names("all", model) == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_has_a_part(name):
    model = build(name)
    parts = part_of(model)
    assert set(parts) == {n for n, _ in model.named_parameters()}
    kinds = {(part.layer, part.kind) for part in parts.values()}
    inside = {(layer, kind) for layer in (1, 2) for kind in ("attention", "mlp", "norms")}
    assert inside <= kinds
    assert {layer for layer, _ in kinds} == {1, 2, None}
    outside = {kind for layer, kind in kinds if layer is None}
    tied = model.config.tie_word_embeddings
    assert {"norm", "embed+head" if tied else "head"} <= outside
    assert outside <= {"embed", "norm", "head", "embed+head"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_below_the_top_with_norm_and_head_is_all(name):
    model = build(name)
    assert names("below:2+norm+head", model) == names("all", model)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_last_block_is_what_is_not_below_it(name):
    model = build(name)
    rest = set(names("below:1+norm+head", model))
    assert set(names("last:1", model)) == set(names("all", model)) - rest


def test_the_papers_selection_is_two_blocks_and_the_output_matrix():
    model = build("llama", num_hidden_layers=4)
    layers = {name.split(".")[2] for name in names("last:2+head", model) if "layers" in name}
    assert layers == {"2", "3"} and "lm_head.weight" in names("last:2+head", model)


def test_a_tied_head_is_the_embedding_and_says_so():
    tied, untied = build("qwen2-tied"), build("qwen2-untied")
    selection = ParameterSelection.parse("head")
    assert selection.names(tied) == ["model.embed_tokens.weight"] == names("embed", tied)
    assert "tied" in selection.remarks(tied)[0]
    assert selection.names(untied) == ["lm_head.weight"] and not selection.remarks(untied)
    assert remarks(
        tied, [ParameterSelection.parse("below:1"), ParameterSelection.parse("all")]
    ) == [f"parameters below:1: {selection.remarks(tied)[0]}"]


@pytest.mark.parametrize("spec", ["all+lora", "lora+last:1", "lora", "all"])
def test_the_base_and_the_adapter_together_are_remarked_on_and_neither_alone(spec):
    model = with_lora(build("llama"), ["q_proj"])
    found = ParameterSelection.parse(spec).remarks(model)
    assert len(found) == ("+" in spec) and all("counted together" in said for said in found)


def test_tying_is_seen_by_identity():
    model = build("qwen2-untied")
    model.lm_head.weight = model.model.embed_tokens.weight
    assert part_of(model)["model.embed_tokens.weight"] == Part(None, "embed+head")


def test_a_pattern_selects_by_name():
    model = build("llama")
    found = names(r"re:layers\.1\..*q_proj", model)
    assert found == ["model.layers.1.self_attn.q_proj.weight"]


def test_parts_read_as_labels():
    assert str(Part(3, "attention")) == "block 3 attention" and str(Part(None, "head")) == "head"


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_an_adapter_changes_no_name_of_the_base(targets):
    plain = names("all", build("llama"))
    adapted = with_lora(build("llama"), targets)
    assert names("all", adapted) == plain
    assert list(part_of(adapted)) == plain
    assert part_of(adapted) == part_of(build("llama"))


def test_lora_is_the_adapters_parameters_alone():
    model = with_lora(build("llama"), ["q_proj"])
    found = names("lora", model)
    assert len(found) == 4 and all(".lora_" in name for name in found)


def test_a_module_trained_whole_is_the_adapters_and_the_effective_bases():
    model = with_lora(build("llama"), ["q_proj"], modules_to_save=["lm_head"])
    trained = model.base_model.model.lm_head.modules_to_save["default"].weight
    assert effective_parameters(model)["lm_head.weight"] is trained
    assert any(p is trained for p in adapter_parameters(model).values())
    both = ParameterSelection.parse("all+lora").parameters(model)
    assert sum(p is trained for p in both.values()) == 1 and "lm_head.weight" in both


def test_exactly_the_chosen_parameters_require_a_gradient():
    model = build("llama")
    model.lm_head.weight.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with requiring_grad(model, ParameterSelection.parse("head").parameters(model)):
        assert [n for n, p in model.named_parameters() if p.requires_grad] == ["lm_head.weight"]
    assert [p.requires_grad for p in model.parameters()] == before


@pytest.mark.parametrize("spec", ["", "everything", "last", "last:x", "below:", "head+", "alll"])
def test_an_unknown_term_is_refused(spec):
    with pytest.raises(UserError, match="choose from all, lora"):
        ParameterSelection.parse(spec)


@pytest.mark.parametrize("spec", ["last:3", "below:3", "last:0", "below:0", "head+last:9"])
def test_a_block_out_of_range_is_refused(spec):
    with pytest.raises(UserError, match="choose from 1 to 2"):
        names(spec, build("llama"))


@pytest.mark.parametrize(("spec", "hint"), [("lora", "no adapter"), ("re:conv2d", "part_of")])
def test_a_selection_of_nothing_is_refused(spec, hint):
    with pytest.raises(UserError, match=f"selects nothing.*{hint}"):
        names(f"all+{spec}", build("llama"))


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(UserError, match="no pattern"):
        ParameterSelection.parse("re:(")
