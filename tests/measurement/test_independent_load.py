"""The comparison with plainly loaded files finds each mistake that the measured model can hide.

Every mistake is put back into the code that measures, one at a time; the comparison alone has to
find it. `verify`, which looks at the same model, is blind to all of them.
"""

import json
import warnings
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from tiny_runs import TEXTS, events, finish, tiny_adapter, tiny_model
from toy_tokenizers import byte_bpe
from transformers import Phi3Config, Phi3ForCausalLM

from ntkprobe import PromptSet, Trajectory, UserError
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.models.batching import LengthRule
from ntkprobe.models.parameters import ParameterSelection
from ntkprobe.prompts.phrases import PHRASE_SETS
from ntkprobe.watcher import (
    KernelSettings,
    MeasureSettings,
    RefusalSettings,
    measure_run,
    models,
)

PROMPTS = PromptSet.from_texts(TEXTS)
FEW = PromptSet.from_texts({group: texts[:1] for group, texts in TEXTS.items()})
SETTINGS = MeasureSettings(
    kernel=KernelSettings(top_k=2, estimator="dense"),
    refusal=RefusalSettings(phrases="three", generate=False),
    load=LoadSettings(device="cpu"),
    template="raw",
)
GRAM = replace(SETTINGS, kernel=replace(SETTINGS.kernel, estimator="gram"))


@pytest.fixture(autouse=True)
def three_phrases(monkeypatch):
    """A phrase is a pass of its own, for every prompt that is compared: three of the paper's 31."""
    monkeypatch.setitem(PHRASE_SETS, "three", PHRASE_SETS["paper31"][:3])


USED = sorted({id for texts in TEXTS.values() for id in byte_bpe()(texts[0])["input_ids"]})


def model_of(tied: bool, **changes):
    sizes = {"vocab_size": len(byte_bpe()), "max_position_embeddings": 256}
    return tiny_model(tie_word_embeddings=tied, **{**sizes, **changes})


def save_base(root, tied=False, **changes):
    model_of(tied, **changes).save_pretrained(root / "base")
    byte_bpe().save_pretrained(root / "base")
    return root / "base"


def adapter_run(root, steps, tied=False, config=None, **adapter):
    base = save_base(root, tied)
    for step in steps:
        model = model_of(tied)
        model.name_or_path = model.config._name_or_path = str(base)
        wrapped = (
            tiny_adapter(model, seed=step, **adapter)
            if config is None
            else get_peft_model(model, config)
        )
        with torch.random.fork_rng():
            torch.manual_seed(step)
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped.save_pretrained(root / f"run/checkpoint-{step}", save_embedding_layers=False)
        finish(root / f"run/checkpoint-{step}", step, max(steps))
    return root / "run"


def measure(run, out, settings=SETTINGS, prompts=FEW, **options):
    return measure_run(prompts, out, ckpt_dir=run, settings=settings, **options)


def fails_the_comparison(out, call, *words):
    """Return what was measured, once a comparison has failed, and only a comparison."""
    try:
        outcome = call()
        reasons, status = list(outcome.failed.values()), outcome.status
    except UserError as why:  # nothing at all could be measured
        reasons, status = [str(why)], 2
    assert status in (1, 2) and reasons
    assert all("loaded plainly" in reason or "no place for" in reason for reason in reasons), (
        reasons
    )
    assert all(word in reasons[0] for word in words)
    return sorted(path.name for path in (out / "unverified" / "kernel").glob("*"))


# --- what is right passes ---


SLOW = pytest.mark.slow


@pytest.mark.parametrize("tied", [pytest.param(False, marks=SLOW), True])
def test_the_base_and_the_first_and_last_checkpoints_are_compared(tmp_path, tied, capsys):
    run = adapter_run(tmp_path, (10, 20, 30), tied)
    assert measure(run, tmp_path / "out", GRAM, PROMPTS).status == 0
    told = [e for e in events(tmp_path / "out") if e["state"] == "compared"]
    assert [e["step"] for e in told] == [0, 10, 30]
    assert all(set(e["errors"]) == {"logits", "kernel", "log P(refuse)"} for e in told)
    assert all(max(e["errors"].values()) < 1e-4 for e in told)
    assert capsys.readouterr().err.count("loaded anew") == 3


def test_each_measurement_is_compared_once(tmp_path):
    base = save_base(tmp_path)
    measure(None, tmp_path / "out", model=str(base))
    told = [e["step"] for e in events(tmp_path / "out") if e["state"] == "compared"]
    assert told == [0]


def test_no_comparison_where_none_is_wanted(tmp_path):
    base = save_base(tmp_path)
    measure(None, tmp_path / "out", replace(SETTINGS, verify=False), model=str(base))
    assert not [e for e in events(tmp_path / "out") if "compare" in e["state"]]


@pytest.mark.parametrize(
    "parameters", ["all", "lora", pytest.param("last:1", marks=SLOW), "last:1+lora"]
)
def test_every_selection_can_be_compared(tmp_path, parameters):
    run = adapter_run(tmp_path, (10,))
    kernel = replace(SETTINGS.kernel, parameters=parameters)
    assert measure(run, tmp_path / "out", replace(SETTINGS, kernel=kernel)).status == 0
    assert (
        "kernel" in [e for e in events(tmp_path / "out") if e["state"] == "compared"][-1]["errors"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"full_vocabulary": True}, {"random_probes": 3}, {"estimator": "finite_difference"}]
)
def test_what_has_no_exact_blocks_is_compared_on_a_pair(tmp_path, changes):
    base = save_base(tmp_path)
    kernel = replace(SETTINGS.kernel, **changes)
    out = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert measure(None, out, replace(SETTINGS, kernel=kernel), model=str(base)).status == 0
    (told,) = (e for e in events(out) if e["state"] == "compared")
    assert told["errors"]["kernel"] < 1e-4


OTHER_ADAPTERS = {
    "dora": LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=True),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=2, target_modules=["q_proj"]),
}


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("dora", "all"),
        pytest.param("dora", "last:1", marks=SLOW),
        pytest.param("ia3", "all", marks=SLOW),
        ("loha", "all"),
    ],
)
def test_adapters_that_are_no_plain_lora_pass(tmp_path, kind, parameters):
    run = adapter_run(tmp_path, (10,), config=OTHER_ADAPTERS[kind])
    kernel = replace(SETTINGS.kernel, parameters=parameters)
    assert measure(run, tmp_path / "out", replace(SETTINGS, kernel=kernel)).status == 0
    told = [e for e in events(tmp_path / "out") if e["state"] == "compared"][-1]
    assert told["step"] == 10 and told["errors"]["kernel"] < 1e-4


def test_an_adapter_with_further_tokens_passes(tmp_path):
    base, size = save_base(tmp_path), len(byte_bpe()) + 4
    model = model_of(False)
    model.resize_token_embeddings(size, mean_resizing=False)
    model.name_or_path = model.config._name_or_path = str(base)
    adapted = tiny_adapter(model, seed=10, target_modules=["q_proj"])
    adapted.save_pretrained(tmp_path / "run/checkpoint-10", save_embedding_layers=True)
    finish(tmp_path / "run/checkpoint-10", 10, 10)
    assert measure(tmp_path / "run", tmp_path / "out").status == 0
    assert [e["step"] for e in events(tmp_path / "out") if e["state"] == "compared"] == [0, 10]


def test_a_comparison_that_breaks_costs_no_measurement(tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("size mismatch")

    monkeypatch.setattr("ntkprobe.watcher.reload_check.compare_with_files", broken)
    outcome = measure(adapter_run(tmp_path, (10,)), tmp_path / "out")
    assert (outcome.status, Trajectory(tmp_path / "out").steps) == (0, [0, 10])
    assert "step 10 was not compared with its files: size mismatch" in capsys.readouterr().err


def test_blocks_are_kept_only_where_they_are_asked_for(tmp_path):
    base = save_base(tmp_path)
    measure(None, tmp_path / "out", model=str(base))
    assert not (tmp_path / "out" / "blocks").exists()


def test_a_checkpoint_that_is_gone_by_then_is_said_not_to_be_compared(
    tmp_path, monkeypatch, capsys
):
    run = adapter_run(tmp_path, (10,))
    opened = models.Models.opened

    @contextmanager
    def then_deleted(self, pin, kind):
        with opened(self, pin, kind) as model:
            (run / "checkpoint-10" / "adapter_model.safetensors").unlink()
            yield model

    monkeypatch.setattr(models.Models, "opened", then_deleted)
    measure(run, tmp_path / "out")
    assert Trajectory(tmp_path / "out").steps == [0, 10]
    assert "step 10 was not compared with its files" in capsys.readouterr().err


# --- each mistake, put back ---


def attached(base, folder, merge):
    model = PeftModel.from_pretrained(base, str(folder)).requires_grad_(True)
    return model.merge_and_unload() if merge else model


def test_a_base_that_is_not_put_back_is_found_at_the_last_checkpoint(tmp_path, monkeypatch):
    run = adapter_run(tmp_path, (10, 20), init_lora_weights="olora")

    @contextmanager
    def leaving_the_base_changed(base, folder, *, merge=True):
        model = PeftModel.from_pretrained(base, str(folder))
        try:
            model.merge_adapter()
            yield model.get_base_model().eval()
        finally:
            model.unmerge_adapter()
            model.unload()
            base.__dict__.pop("peft_config", None)

    monkeypatch.setattr(models, "adapted", leaving_the_base_changed)
    monkeypatch.setattr(models, "weights_digest", lambda base: "")  # which would see it, too
    out = tmp_path / "out"
    aside = fails_the_comparison(out, lambda: measure(run, out), "logits")
    assert aside == ["step-00000020.parquet"]
    assert Trajectory(out).steps == [0, 10]  # the first adapter found the base as it should be


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_change_of_one_tied_end_that_reaches_the_other_is_found(tmp_path, monkeypatch, target):
    run = adapter_run(tmp_path, (10,), tied=True, target_modules=["q_proj", target])

    @contextmanager
    def merged_into_both_ends(base, folder, *, merge=True):
        yield attached(model_of(tied=True), folder, merge=True).requires_grad_(True).eval()

    monkeypatch.setattr(models, "adapted", merged_into_both_ends)
    out = tmp_path / "out"
    assert fails_the_comparison(out, lambda: measure(run, out), "logits", "log P(refuse)")


@pytest.mark.parametrize(
    "adapter", [{"bias": "all"}, {"trainable_token_indices": USED}], ids=["biases", "tokens"]
)
def test_what_an_adapter_trains_besides_its_factors_is_missed_by_the_kernel(
    tmp_path, monkeypatch, adapter
):
    run = adapter_run(tmp_path, (10,), **adapter)
    whole = ParameterSelection.parameters
    monkeypatch.setattr(
        ParameterSelection,
        "parameters",
        lambda self, model: {n: p for n, p in whole(self, model).items() if ".lora_" in n},
    )
    out = tmp_path / "out"
    settings = replace(SETTINGS, kernel=replace(SETTINGS.kernel, parameters="lora"))
    fails_the_comparison(out, lambda: measure(run, out, settings), "kernel")


def test_a_tied_tensor_that_the_kernel_lost_is_found(tmp_path, monkeypatch):
    run = adapter_run(tmp_path, (10,), tied=True, modules_to_save=["embed_tokens"])
    whole = ParameterSelection.parameters
    monkeypatch.setattr(
        ParameterSelection,
        "parameters",
        lambda self, model: {n: p for n, p in whole(self, model).items() if "embed" not in n},
    )
    out = tmp_path / "out"
    fails_the_comparison(out, lambda: measure(run, out), "kernel")


def test_what_an_earlier_call_measured_stays_where_a_comparison_fails(tmp_path, monkeypatch):
    run, out = adapter_run(tmp_path, (10,), tied=True, modules_to_save=["embed_tokens"]), tmp_path
    assert measure(run, out / "out", replace(SETTINGS, kernel=None)).status == 0
    refusals = sorted((out / "out/refusal").glob("*"))
    whole = ParameterSelection.parameters
    monkeypatch.setattr(
        ParameterSelection,
        "parameters",
        lambda self, model: {n: p for n, p in whole(self, model).items() if "embed" not in n},
    )
    kernel = replace(SETTINGS, refusal=None)
    assert fails_the_comparison(out / "out", lambda: measure(run, out / "out", kernel), "kernel")
    assert refusals and sorted((out / "out/refusal").glob("*")) == refusals


def test_weights_without_a_place_are_found(tmp_path, monkeypatch):
    model_of(False, num_hidden_layers=3).save_pretrained(tmp_path / "model")
    byte_bpe().save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    finish(tmp_path / "model", 10, 10)

    def dropping_them(folder, settings=None):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()

    monkeypatch.setattr(models, "load_checkpoint", dropping_them)
    out = tmp_path / "out"
    fails_the_comparison(out, lambda: measure(tmp_path / "model", out), "no place for")


def test_a_long_prompt_that_changes_its_batch_is_found(tmp_path, monkeypatch):
    limit = 64
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 2}
    rope |= {"long_factor": [4.0] * 2, "original_max_position_embeddings": limit, "factor": 8.0}
    config = Phi3Config(
        vocab_size=len(byte_bpe()),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8 * limit,
        original_max_position_embeddings=limit,
        rope_parameters=rope,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Phi3ForCausalLM(config).save_pretrained(tmp_path / "base")
    byte_bpe().save_pretrained(tmp_path / "base")
    prompts = PromptSet.from_texts({**TEXTS, "normal": ["bake a cake", "bake a cake " * 20]})
    base = str(tmp_path / "base")

    def call(out):
        return lambda: measure_run(prompts, out, model=base, settings=GRAM)

    assert call(tmp_path / "right")().status == 0
    monkeypatch.setattr(LengthRule, "of", classmethod(lambda cls, model: cls()))
    monkeypatch.setattr(
        "ntkprobe.models.logits.keep_verdict", lambda *_: None
    )  # it would be seen there
    monkeypatch.setattr("ntkprobe.watcher.recorder.verify", lambda *_, **__: "not verified")  # too
    fails_the_comparison(tmp_path / "wrong", call(tmp_path / "wrong"), "kernel")


def test_nothing_is_measured_after_a_first_comparison_that_failed(tmp_path, monkeypatch):
    run = adapter_run(tmp_path, (10, 20))
    loaded = models.load_model

    def another_model(name, settings):
        model = loaded(name, settings)
        model.get_output_embeddings().weight.data.mul_(1.5)
        return model

    monkeypatch.setattr(models, "load_model", another_model)
    out = tmp_path / "out"
    aside = fails_the_comparison(out, lambda: measure(run, out), "logits")
    assert aside == ["step-00000000.parquet"] and not list((out / "kernel").glob("*"))
