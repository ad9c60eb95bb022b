"""A GGUF file is a model like any other, dequantised, and nothing of it is left out silently."""

import hashlib
import json

import gguf
import numpy as np
import pytest
import torch
import yaml
from gguf_files import gguf_name, interleaved, small_llama, write_gguf
from toy_tokenizers import byte_bpe

from ntkprobe.checkpoints import (
    LoadSettings,
    adapted,
    base_and_adapter,
    gguf_file,
    load_model,
    load_tokenizer,
)
from ntkprobe.checkpoints.export import export_model
from ntkprobe.checkpoints.gguf_models import require_loadable
from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.measurement.verification.plain_load import load_plainly
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.training.data import Pair
from ntkprobe.training.sft import SFTConfig, train_sft
from ntkprobe.watcher import KernelSettings, MeasureSettings, RefusalSettings, measure_run

IDS = torch.arange(3, 40)[None]
CPU = LoadSettings(device="cpu")


@pytest.fixture(scope="module")
def model():
    return small_llama()


@pytest.fixture(scope="module")
def small(model, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", model, "Q8_0")


def stored(model, kind):
    """Return every parameter as the file keeps it, by the gguf package's own arithmetic."""
    heads = {"attn_q": 4, "attn_k": 2}
    kept = {}
    for name, parameter in model.named_parameters():
        weight, key = parameter.detach().numpy(), gguf_name(name)
        if weight.ndim > 1:
            number = heads.get(key.split(".")[2] if key.count(".") > 2 else "", None)
            rows = interleaved(np.arange(len(weight))[:, None], number)[:, 0] if number else None
            turned = weight if rows is None else weight[rows]
            type_ = gguf.GGMLQuantizationType[kind]
            back = gguf.dequantize(gguf.quantize(turned, type_), type_)
            weight = back if rows is None else back[np.argsort(rows)]
        kept[name] = torch.from_numpy(np.array(weight))
    return kept


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_every_parameter_is_the_files_tensor_dequantised(model, tmp_path, kind):
    loaded = load_model(str(write_gguf(tmp_path / "m.gguf", model, kind)), CPU)
    expected = stored(model, kind)
    assert {name for name, _ in loaded.named_parameters()} == set(expected)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, expected[name]), name


def test_in_float32_a_gguf_answers_as_the_model_it_was_made_of(model, tmp_path):
    loaded = load_model(str(write_gguf(tmp_path / "m.gguf", model)), CPU)
    wrong = write_gguf(tmp_path / "wrong.gguf", model, permute=False)
    with torch.no_grad():
        expected = model(IDS).logits
        assert torch.equal(loaded(IDS).logits, expected)
        assert not torch.allclose(load_model(str(wrong), CPU)(IDS).logits, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("pre", "bos", "first"),
    [
        ("llama-bpe", None, True),  # llama.cpp puts BOS before texts of such files unasked
        ("llama-bpe", False, False),
        ("qwen2", None, False),
        ("qwen2", True, True),
    ],
)
def test_a_text_begins_with_bos_where_llama_cpp_begins_it_so(tmp_path, pre, bos, first):
    file = write_gguf(tmp_path / "a.gguf", small_llama(), pre=pre, bos=bos)
    tokenizer = load_tokenizer(file)
    plain = tokenizer("How?", add_special_tokens=False)["input_ids"]
    assert tokenizer("How?")["input_ids"] == [tokenizer.bos_token_id] * first + plain


def test_tokenizer_and_template_are_the_files_own(small):
    ours, theirs = load_tokenizer(small), byte_bpe()
    text = "<|im_start|>user\nHow do I kill a python process?<|im_end|>\nSure, here is\n\n"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.chat_template == theirs.chat_template
    assert (ours.eos_token, ours.pad_token) == (theirs.eos_token, theirs.pad_token)


def test_a_file_whose_vocabulary_splits_digits_gets_them_split(model, small, tmp_path):
    apart = load_tokenizer(write_gguf(tmp_path / "m.gguf", model, pre="smollm"))
    split = apart.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split("a\n\n12")] == ["a", "ĊĊ", "1", "2"]
    plain = load_tokenizer(small).backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in plain("a\n\n12")] == ["a", "Ċ", "Ċ", "12"]


def test_what_is_loaded_is_said_once_to_be_the_dequantised_model(model, tmp_path, capsys):
    file = write_gguf(tmp_path / "m.gguf", small_llama(7), "Q4_1")
    load_model(str(file), CPU)
    load_model(str(file), CPU)
    said = capsys.readouterr().err
    assert said.count("this is the dequantised model, not the original one") == 1
    load_model(str(write_gguf(tmp_path / "whole.gguf", small_llama(7))), CPU)
    assert "not the original" not in capsys.readouterr().err


def test_another_dtype_is_that_of_the_dequantised_weights(model, small):
    half = load_model(str(small), LoadSettings(device="cpu", dtype="bfloat16"))
    full = dict(load_model(str(small), CPU).named_parameters())
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, full[name].to(torch.bfloat16))


def test_files_beside_a_gguf_are_not_read(small, tmp_path):
    beside = tmp_path / "m.gguf"
    beside.write_bytes(small.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "another"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    assert load_tokenizer(beside).chat_template == byte_bpe().chat_template


def test_a_folder_with_one_gguf_is_that_file_and_with_several_none(small, tmp_path):
    (tmp_path / "a.gguf").write_bytes(small.read_bytes())
    assert gguf_file(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"several GGUF files \(a.gguf, b.gguf\)"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert gguf_file(tmp_path) is None


def test_an_exported_folder_is_an_ordinary_model_with_the_same_logits(small, tmp_path):
    folder = export_model(str(small), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["model_type"] == "llama"
    again = load_model(str(folder), CPU)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, load_model(str(small), CPU)(IDS).logits)
    text = "How do I kill a python process?"
    assert load_tokenizer(folder)(text).input_ids == load_tokenizer(small)(text).input_ids
    assert load_tokenizer(folder).chat_template == load_tokenizer(small).chat_template
    with pytest.raises(UserError, match="holds something"):
        export_model(str(small), folder)


def test_a_file_loaded_once_more_to_compare_shows_no_bar_and_is_the_same_model(small, capfd):
    again = load_plainly(str(small), None, CPU)
    assert "quantizing" not in capfd.readouterr().err
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, load_model(str(small), CPU)(IDS).logits)


def test_an_adapter_trained_over_a_gguf_is_measured_and_merged_over_it(small, tmp_path):
    pairs = [Pair("How do I hurt my neighbour?", "I cannot")] * 4
    config = SFTConfig(
        output_dir=str(tmp_path / "run"),
        n_general=2,
        n_safe=2,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        learning_rate=0.1,
        use_cpu=True,
    )
    final = train_sft(str(small), pairs, pairs, config)
    sha256 = hashlib.sha256(small.read_bytes()).hexdigest()
    settings = yaml.safe_load((tmp_path / "run" / "training.yaml").read_text())
    assert settings["digests"]["model"] == sha256
    base, adapter = base_and_adapter(str(final), None)
    assert base == str(small.resolve()) and adapter == final

    prompts = PromptSet.from_texts({"toxic": ["kill"], "normal": ["Hello", "kill a process"]})
    how = MeasureSettings(
        kernel=KernelSettings(top_k=2), refusal=RefusalSettings(generate=False), verify=False
    )
    outcome = measure_run(prompts, tmp_path / "ntk", ckpt_dir=tmp_path / "run", settings=how)
    assert not outcome.failed and 0 in outcome.new
    about = json.loads((tmp_path / "ntk" / "run.json").read_text())["model"]
    assert (about["base"], about["base_identity"]) == (str(small.resolve()), sha256)

    folder = export_model(str(final), tmp_path / "merged")
    with torch.no_grad(), adapted(load_model(base, CPU), final) as merged:
        expected = merged(IDS).logits
    with torch.no_grad():
        assert torch.equal(load_model(str(folder), CPU)(IDS).logits, expected)
        assert not torch.equal(load_model(base, CPU)(IDS).logits, expected)


def test_an_adapter_whose_gguf_is_gone_names_it(small, tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/gone/model.gguf"})
    )
    with pytest.raises(UserError, match=r"trained on /gone/model.gguf, .* give it with --model"):
        base_and_adapter(str(tmp_path), None)


def test_a_file_of_another_kind_is_refused_with_its_digest(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 this is an archive")
    sha256 = hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest()
    with pytest.raises(UserError, match=sha256):
        load_model(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize("share", [0.00005, 0.01, 0.3, 0.6, 0.999])
def test_a_file_cut_short_anywhere_is_refused_in_one_line(small, tmp_path, share):
    whole = small.read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: max(5, int(len(whole) * share))])
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match="cut short") as told:
            load(str(tmp_path / "m.gguf"))
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architecture": "hyperloop"}, "'hyperloop'.*cannot load it"),
        (
            {"further": lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32))},
            r"rope_freqs.*another model",
        ),
        ({"further": lambda w: w.add_rope_scaling_factor(4.0)}, r"rope.scaling.factor = 4"),
    ],
)
def test_what_would_load_as_another_model_is_refused(model, tmp_path, change, match):
    file = write_gguf(tmp_path / "m.gguf", model, **change)
    with pytest.raises(UserError, match=match):
        load_model(str(file), CPU)
    with pytest.raises(UserError, match=match):  # and its header tells so already
        require_loadable(file)


@pytest.mark.parametrize("tied", [True, False])
def test_a_header_of_what_can_be_loaded_is_accepted(tied, tmp_path):
    if tied:
        require_loadable(write_gguf(tmp_path / "m.gguf", small_llama()))
        return
    model = small_llama()
    head = model.lm_head.weight.detach().numpy() + 1
    file = write_gguf(
        tmp_path / "m.gguf", model, further=lambda w: w.add_tensor("output.weight", head)
    )
    require_loadable(file)
    assert not load_model(str(file), CPU).config.tie_word_embeddings


def test_a_file_without_a_template_has_raw_prompts_and_says_so(tmp_path, capsys):
    file = write_gguf(tmp_path / "m.gguf", small_llama(8), template=False)
    assert not load_tokenizer(file).chat_template
    load_model(str(file), CPU)
    assert "no chat template" in capsys.readouterr().err


def test_a_part_of_a_divided_model_is_refused(small, tmp_path):
    part = tmp_path / "m-00001-of-00002.gguf"
    part.write_bytes(small.read_bytes())
    with pytest.raises(UserError, match="one part of a model"):
        load_model(str(part))


def test_export_and_doctor_on_the_command_line(small, tmp_path, capsys):
    assert main(["export", "--model", str(small), "--output-dir", str(tmp_path / "out")]) == 0
    assert "exported:" in capsys.readouterr().out
    assert main(["doctor", "--model", str(small)]) == 0
    said = capsys.readouterr().out
    assert hashlib.sha256(small.read_bytes()).hexdigest() in said and "Q8_0" in said
    assert main(["doctor", "--model", str(tmp_path)]) == 2
