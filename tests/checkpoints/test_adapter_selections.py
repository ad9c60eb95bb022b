"""Which parameters of an adapted model are whose: `lora` is all it trains, `all` the merged."""

from pathlib import Path

import pytest
import torch
from adapter_cases import LORA, base_model, dtype_of, lora_config, save, trained
from architectures import build, with_lora
from torch import nn

from ntkprobe.checkpoints import adapted, load_checkpoint
from ntkprobe.checkpoints.loading import LoadSettings
from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.forward_mode import ForwardMode
from ntkprobe.estimators.gram import Gram
from ntkprobe.kernel import Probe
from ntkprobe.measurement.full_vocabulary import full_vocabulary_norms
from ntkprobe.measurement.influence import apply_step, influence, record_step
from ntkprobe.models.parameters import ParameterSelection, Part, effective_parameters, part_of
from ntkprobe.models.peft_modules import untie
from ntkprobe.training.callbacks import trained as trained_by

# Prompts that hold trained rows, and tokens read that are some of them.
PROBES = [
    Probe(torch.tensor([1, 5, 9, 3]), torch.tensor([1, 2, 5])),
    Probe(torch.tensor([5, 7, 2]), torch.tensor([1, 7, 5])),
]
TRAINED = [
    name
    for name in LORA
    if name not in ("OLoRA on the head", "OLoRA", "PiSSA", "patterns", "one layer", "orthogonal")
]
# One of each kind of change: low rank, biases, rows, whole tensors, one and both ends of a pair.
QUICK = ("plain", "all biases", "rows", "ends whole, tied", "on the head", "OLoRA on the head")


def quick_and_slow(names):
    """Return the names as parameters, those that `QUICK` lacks for the slow tests."""
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


def kernel(model, parameters):
    """K by plain autograd, of parameters that are given and not selected."""
    before = [p.requires_grad for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    rows = []
    for probe in PROBES:
        values = probe.read(model(input_ids=probe.input_ids[None], use_cache=False).logits[0, -1])
        for value in values:
            found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            pairs = zip(found, parameters, strict=True)
            rows.append(
                torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
            )
    for parameter, required in zip(parameters, before, strict=True):
        parameter.requires_grad_(required)
    jacobian = torch.stack(rows).double()
    return (jacobian @ jacobian.T).unflatten(0, (2, 3)).unflatten(2, (2, 3))


def close(found, expected, rtol=1e-5):
    """Compare kernels; a model in float64 still has float32 inside transformers' norms."""
    assert (found - expected).abs().max() <= rtol * expected.abs().max()


def selected(model, spec):
    return {id(p) for p in ParameterSelection.parse(spec).parameters(model).values()}


@pytest.mark.parametrize(
    ("name", "tied"), [*((name, True) for name in LORA), ("rows", False), ("ends whole", False)]
)
def test_lora_is_what_requires_a_gradient_in_training(name, tied):
    model = trained(base_model(tied, dtype_of(name)), lora_config(**LORA[name]))
    assert selected(model, "lora") == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", quick_and_slow(TRAINED))
def test_the_adapters_kernel_is_over_all_that_it_trains(name):
    model = trained(base_model(True, dtype_of(name)), lora_config(**LORA[name]))
    wanted = [p for p in model.parameters() if p.requires_grad]
    expected = kernel(model, wanted)
    rtol = 1e-5 if dtype_of(name) == torch.float64 else 1e-4
    close(Gram()(model, PROBES, "lora"), expected, rtol)
    close(Dense()(model, PROBES, "lora"), expected, rtol)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", quick_and_slow(["all biases", "rows", "ends whole, tied", "on both ends"])
)
def test_every_estimator_counts_the_same(name):
    model = trained(base_model(True), lora_config(**LORA[name]))
    expected = kernel(model, [p for p in model.parameters() if p.requires_grad])
    close(ForwardMode()(model, PROBES, "lora"), expected)
    close(FiniteDifference(step="unit")(model, PROBES, "lora"), expected, 1e-2)
    close(Gram().between(model, PROBES, model, PROBES, "lora"), expected)
    close(sum(Gram().by_part(model, PROBES, "lora").values()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", quick_and_slow([*TRAINED, "OLoRA on the head"]))
def test_all_is_one_number_merged_or_not_and_saved_merged_or_not(name, tmp_path):
    dtype = dtype_of(name)
    save(trained(base_model(True, dtype), lora_config(**LORA[name])), tmp_path / "adapter")
    with adapted(base_model(True, dtype), tmp_path / "adapter") as merged:
        expected = kernel(merged, list(merged.parameters()))
        merged.save_pretrained(tmp_path / "merged")
    rtol = 1e-5 if dtype == torch.float64 else 1e-4
    with adapted(base_model(True, dtype), tmp_path / "adapter", merge=False) as beside:
        close(Gram()(beside, PROBES, "all"), expected, rtol)
    saved = load_checkpoint(
        tmp_path / "merged", LoadSettings(device="cpu", dtype=str(dtype).removeprefix("torch."))
    )
    close(Gram()(saved, PROBES, "all"), expected, rtol)


def test_an_embedding_trained_whole_leaves_the_tied_head_its_own_matrix():
    model = trained(base_model(True), lora_config(modules_to_save=["embed_tokens"]))
    inner = model.base_model.model
    found = effective_parameters(model)
    copy = inner.model.embed_tokens.modules_to_save["default"].weight
    assert found["model.embed_tokens.weight"] is copy
    assert found["lm_head.weight"] is inner.lm_head.weight is not copy
    parts = part_of(model)
    assert parts["model.embed_tokens.weight"] == Part(None, "embed")
    assert parts["lm_head.weight"] == Part(None, "head")
    assert selected(model, "head") == {id(inner.lm_head.weight)}
    close(Gram()(model, PROBES, "all"), kernel(model, list(found.values())))


def test_trained_rows_belong_where_their_matrix_does():
    tied = trained(base_model(True), lora_config(trainable_token_indices=[1, 5]))
    untied = trained(base_model(False), lora_config(trainable_token_indices=[1, 5]))
    (name,) = [n for n in part_of(tied) if "trainable_tokens" in n]
    assert part_of(tied)[name] == Part(None, "embed+head")
    assert part_of(untied)[name] == Part(None, "embed")
    assert name in ParameterSelection.parse("embed").names(untied)
    assert name not in ParameterSelection.parse("head").names(untied)


def test_a_base_models_own_names_make_nothing_an_adapters():
    model = build("llama")
    inner = model.model.layers[0]
    inner.modules_to_save, inner.mlp = nn.ModuleDict({"lora_A": inner.mlp}), None
    inner.mlp = inner.modules_to_save["lora_A"]
    adapted_model = with_lora(model, ["q_proj"])
    names = ParameterSelection.parse("lora").names(adapted_model)
    assert len(names) == 4 and all("q_proj" in name for name in names)
    plain = {id(p) for p in model.parameters()} - selected(adapted_model, "lora")
    assert selected(adapted_model, "all") == plain


def test_a_tied_matrix_that_an_adapter_changes_at_one_end_is_refused_until_it_is_two():
    model = trained(base_model(True), lora_config(target_modules=["q_proj", "lm_head"]))
    for spec in ("all", "head", "embed"):
        with pytest.raises(UserError, match="tied, in different ways"):
            ParameterSelection.parse(spec).parameters(model)
    assert selected(model, "lora") and selected(model, "last:1")
    ids = PROBES[0].input_ids[None]
    before = model(input_ids=ids).logits
    untie(model)
    assert torch.equal(model(input_ids=ids).logits, before)
    close(Gram()(model, PROBES, "all"), kernel(model, list(effective_parameters(model).values())))
    assert len(selected(model, "head") | selected(model, "embed")) == 2


def test_matrices_that_two_ends_share_in_memory_are_refused_as_loras():
    changes = {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    model = trained(base_model(True), lora_config(**changes))
    with pytest.raises(UserError, match="one in memory"):
        ParameterSelection.parse("lora").parameters(model)
    close(Gram()(model, PROBES, "all"), kernel(model, list(effective_parameters(model).values())))


def test_rows_of_two_matrices_at_once_are_refused_as_the_bases():
    base = base_model(True)
    base.lm_head.weight = nn.Parameter(base.lm_head.weight.detach() + 0.1)
    model = trained(base, lora_config(trainable_token_indices=[1, 5]))
    with pytest.raises(UserError, match="two matrices at once"):
        ParameterSelection.parse("all").parameters(model)
    expected = kernel(model, [p for p in model.parameters() if p.requires_grad])
    close(Gram()(model, PROBES, "lora"), expected)


@pytest.mark.parametrize("variant", [{"use_dora": True}, {"alora_invocation_tokens": [1]}])
def test_a_variant_of_lora_beside_its_base_is_refused(variant):
    model = trained(base_model(False), lora_config(**variant))
    with pytest.raises(UserError, match="no plain LoRA"):
        Gram()(model, PROBES, "lora")


# --- the same, where a step of training is predicted ---


@pytest.mark.parametrize("name", ["all biases", "rows", "head whole"])
def test_the_influence_of_a_step_is_that_of_all_that_the_adapter_trains(name):
    model = trained(base_model(True), lora_config(**LORA[name]))
    pair, seen = ([5, 7, 2], [5, 1]), [1, 5, 9, 3]
    found = influence(
        model, None, updated=[pair], observed=[seen], tokens="all", phrases=None, loss="sum"
    )
    moved = [p for p in model.parameters() if p.requires_grad]
    ids = torch.tensor([[*pair[0], *pair[1]]])
    answer = model(input_ids=ids).logits[0, len(pair[0]) - 1 : -1].log_softmax(-1)
    loss = -answer[torch.arange(len(pair[1])), torch.tensor(pair[1])].sum()
    step = [-g for g in torch.autograd.grad(loss, moved)]
    after = model(input_ids=torch.tensor([seen])).logits[0, -1].log_softmax(-1)
    change = []
    for value in after:
        slope = torch.autograd.grad(value, moved, retain_graph=True)
        change.append(sum((g * d).sum() for g, d in zip(slope, step, strict=True)))
    close(found.log_probability.flatten(), torch.stack(change))


def test_a_recorded_step_names_each_parameter_once_and_is_applied_once():
    def made():
        return trained(base_model(True), lora_config(modules_to_save=["lm_head"], bias="all"))

    model, other = made(), made()
    assert len({id(p) for p in trained_by(model).values()}) == len(trained_by(model))
    with record_step(model) as step:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.01
    # Steps recorded before named a module trained whole twice.
    twice = step | {"lm_head.weight": step["lm_head.modules_to_save.default.weight"]}
    apply_step(other, twice)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_norms_over_the_vocabulary_select_what_the_kernel_selects():
    model = trained(base_model(True), lora_config(bias="all"))
    prompts = [probe.input_ids for probe in PROBES]
    everything = torch.arange(32)
    probes = [Probe(ids, everything) for ids in prompts]
    for spec in ("last:1", "lora"):
        blocks = Dense()(model, probes, spec)
        expected = torch.linalg.matrix_norm(blocks.transpose(1, 2))
        close(full_vocabulary_norms(model, prompts, spec), expected, 1e-6)


def test_nothing_of_peft_is_needed_for_a_plain_model(monkeypatch):
    source = Path(effective_parameters.__code__.co_filename).read_text()
    assert "\nfrom peft" not in source and "\nimport peft" not in source
