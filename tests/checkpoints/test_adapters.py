"""An adapter over a base in memory is what peft computes unmerged, and leaves the base alone."""

import json

import pytest
import torch
from adapter_cases import (
    LORA,
    MERGED,
    base_model,
    dtype_of,
    loaded_by_peft,
    loha_config,
    lora_config,
    resized,
    save,
    trained,
)
from tiny_runs import finish, save_base, tiny_model, tiny_tokenizer
from torch import nn

from ntkprobe.checkpoints import LoadSettings, adapted, weights_digest
from ntkprobe.errors import UserError
from ntkprobe.watcher.models import Models

IDS = torch.arange(8)[None]
CASES = LORA | MERGED


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def bits(model):
    """Every tensor, which of them are tied, and the configuration."""
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {n: (id(t), t.detach().clone(), t.requires_grad) for n, t in tensors}, dict(
        vars(model.config)
    )


def unchanged(before, after):
    (tensors, config), (now, configured) = before, after
    assert config == configured and list(tensors) == list(now)
    for name, (own, value, required) in tensors.items():
        assert now[name][0] == own and now[name][2] == required, name
        assert torch.equal(now[name][1], value), name


UNTIED = ("plain", "ends whole", "rows", "on both ends", "OLoRA", "all biases")


@pytest.mark.parametrize(
    ("name", "tied"), [*((name, True) for name in CASES), *((name, False) for name in UNTIED)]
)
def test_merged_or_beside_the_base_an_adapter_computes_what_peft_computes(name, tied, tmp_path):
    dtype = dtype_of(name)
    save(trained(base_model(tied, dtype), lora_config(**CASES[name])), tmp_path)
    right = logits(loaded_by_peft(base_model(tied, dtype), tmp_path))
    base = base_model(tied, dtype)
    plain, before = logits(base), bits(base)
    slack = 1e-10 if dtype == torch.float64 else 1e-5
    for merge in (True, False):
        with adapted(base, tmp_path, merge=merge) as model:
            torch.testing.assert_close(logits(model), right, atol=slack, rtol=0)
        unchanged(before, bits(base))
    assert (right - plain).abs().max() > 1e-2  # else nothing was shown


def test_peft_itself_merges_an_adapter_on_one_tied_end_into_both(tmp_path):
    save(trained(base_model(True), lora_config(target_modules=["lm_head"])), tmp_path)
    right = logits(loaded_by_peft(base_model(True), tmp_path))
    wrong = logits(loaded_by_peft(base_model(True), tmp_path).merge_and_unload())
    assert (wrong - right).abs().max() > 1e-2


@pytest.mark.parametrize("tied", [True, False])
def test_another_method_is_merged_as_it_computes(tied, tmp_path):
    save(trained(base_model(tied), loha_config()), tmp_path)
    right = logits(loaded_by_peft(base_model(tied), tmp_path))
    base = base_model(tied)
    before = bits(base)
    with adapted(base, tmp_path) as model:
        torch.testing.assert_close(logits(model), right, atol=1e-10, rtol=0)
    unchanged(before, bits(base))


def test_ends_tied_in_the_configuration_alone_stay_two(tmp_path):
    def made():
        model = base_model(True)
        model.lm_head.weight = nn.Parameter(1.1 * model.lm_head.weight.detach() + 0.05)
        return model

    for name in ("rows", "on the head", "ends by one pair", "embedding whole"):
        folder = save(trained(made(), lora_config(**CASES[name])), tmp_path / name)
        right = logits(loaded_by_peft(made(), folder))
        with adapted(made(), folder) as model:
            torch.testing.assert_close(logits(model), right, atol=1e-10, rtol=0)


@pytest.mark.parametrize("first", ["OLoRA", "all biases", "on the head"])
def test_adapters_in_turn_are_each_over_the_base_as_it_was(first, tmp_path):
    base = base_model(True, torch.float32)
    for step, name in enumerate((first, "PiSSA", "rows")):
        made = trained(base_model(True, torch.float32), lora_config(**CASES[name]), seed=step)
        folder = save(made, tmp_path / str(step))
        right = logits(loaded_by_peft(base_model(True, torch.float32), folder))
        with adapted(base, folder) as model:
            torch.testing.assert_close(logits(model), right, atol=1e-5, rtol=0)


@pytest.mark.parametrize("merge", [True, False])
def test_loading_an_adapter_draws_no_random_number(merge, tmp_path):
    save(trained(base_model(False), lora_config()), tmp_path)
    base = base_model(False)
    state = torch.get_rng_state()
    with adapted(base, tmp_path, merge=merge):
        assert torch.equal(torch.get_rng_state(), state)


# --- a base that is not as it was ---


def test_the_digest_sees_one_bit_and_one_tie():
    model, other = tiny_model(), tiny_model()
    assert weights_digest(model) == weights_digest(other)
    other.model.norm.weight.data[3] = torch.nextafter(
        other.model.norm.weight.data[3], torch.tensor(9.0)
    )
    assert weights_digest(model) != weights_digest(other)
    untied = tiny_model()
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    assert weights_digest(model) != weights_digest(untied)


def test_a_base_that_was_written_into_is_loaded_anew(tmp_path):
    folder = save_base(tmp_path / "base")
    save(trained(tiny_model(), lora_config()), tmp_path / "adapter")
    models = Models(str(folder), LoadSettings(device="cpu"))
    right = logits(models.base())
    with models.opened(tmp_path / "adapter", "adapter"):
        pass
    kept = models.base()
    with models.opened(tmp_path / "adapter", "adapter") as model:
        model.model.layers[0].mlp.up_proj.weight.data += 1  # no target: the base's own tensor
    assert models.base() is not kept
    assert torch.equal(logits(models.base()), right)


# --- embeddings of another size ---

SIZES = [("plain", 35), ("plain", 28), ("ends whole", 35), ("on both ends", 35), ("OLoRA", 35)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("name", "rows"), SIZES)
def test_an_adapter_with_its_embeddings_is_applied_to_a_base_of_its_size(
    name, rows, tied, tmp_path
):
    dtype = dtype_of(name)

    def grown():
        return resized(lambda: base_model(tied, dtype), rows)

    made = trained(grown(), lora_config(**CASES[name]))
    save(made, tmp_path, save_embedding_layers=True)
    right, base = logits(loaded_by_peft(grown(), tmp_path)), base_model(tied, dtype)
    before = bits(base)
    for merge in (True, False):
        with adapted(base, tmp_path, merge=merge) as model:
            assert logits(model).shape[-1] == rows
            slack = 1e-10 if dtype == torch.float64 else 1e-5
            torch.testing.assert_close(logits(model), right, atol=slack, rtol=0)
        unchanged(before, bits(base))
        assert base.get_input_embeddings().num_embeddings == 32


def test_rows_that_the_file_lacks_are_told_in_one_line(tmp_path):
    def grown():
        return resized(lambda: base_model(False), 35)

    save(trained(grown(), lora_config(target_modules=["lm_head"])), tmp_path / "lora")
    with pytest.raises(UserError, match=r"35 rows.*save_embedding_layers"):
        with adapted(base_model(False), tmp_path / "lora"):
            pass
    save(trained(grown(), lora_config(trainable_token_indices=[33])), tmp_path / "rows")
    with pytest.raises(UserError, match="token 33"), adapted(base_model(False), tmp_path / "rows"):
        pass


def test_a_tokenizer_with_more_tokens_than_rows_is_told_in_one_line(tmp_path):
    save(trained(base_model(False), lora_config()), tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    with adapted(base_model(False), tmp_path):
        pass
    tokenizer.add_tokens([f"<new{i}>" for i in range(33 - len(tokenizer))])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"33 tokens.*32 rows"):
        with adapted(base_model(False), tmp_path):
            pass


# --- what cannot be measured ---


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "random part"),
        ({"init_lora_weights": "lora_ga"}, "gradients"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
        ({"an_option_of_tomorrow": 3}, "an_option_of_tomorrow.*newer peft"),
        ({"alora_invocation_tokens": [1, 2]}, "cannot merge"),
        ({"bias": "all"}, "lacks"),
    ],
)
def test_what_a_configuration_asks_for_in_vain_is_told_in_one_line(changes, why, tmp_path):
    save(trained(base_model(False), lora_config()), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    base = base_model(False, torch.float32)
    before = bits(base)
    with pytest.raises(UserError, match=why), adapted(base, tmp_path):
        pass
    unchanged(before, bits(base))


def test_adapters_that_an_adapter_names_are_not_fetched(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("peft.peft_model.PeftModel.load_adapter", lambda *a, **_: asked.append(a))
    save(trained(base_model(False), lora_config()), tmp_path)
    mixture = {"peft_type": "XLORA", "task_type": "CAUSAL_LM", "hidden_size": 8}
    mixture["adapters"] = {"0": "anyone/adapter"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(mixture))
    base = base_model(False, torch.float32)
    base.config.use_cache = False  # else peft refuses it itself
    with pytest.raises(UserError, match="not fetched"), adapted(base, tmp_path):
        pass
    assert not asked


def test_a_default_of_a_newer_peft_is_no_obstacle(tmp_path):
    save(trained(base_model(False), lora_config()), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"an_option_of_tomorrow": None}))
    with adapted(base_model(False), tmp_path):
        pass


def test_a_run_of_adapters_that_change_the_base_is_measured_over_it(tmp_path):
    base = save_base(tmp_path / "base")
    models = Models(str(base), LoadSettings(device="cpu"))
    for step in (10, 20):
        made = trained(tiny_model(), lora_config(init_lora_weights="olora"), seed=step)
        folder = finish(save(made, tmp_path / f"checkpoint-{step}"), step, 20)
        right = logits(loaded_by_peft(tiny_model(), folder))
        with models.opened(folder, "adapter") as model:
            torch.testing.assert_close(logits(model), right, atol=1e-5, rtol=0)
