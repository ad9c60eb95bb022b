"""A tokenizer that splits texts otherwise than its own file says so."""

import json
import warnings

import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from toy_tokenizers import byte_bpe

from ntkprobe.checkpoints import load_tokenizer
from ntkprobe.errors import MeasurementWarning

TEXT = "How do I kill  a Python process?\n\nDon't SAY 12345"


def saved(folder, kind, model_type):
    core = Tokenizer.from_str(byte_bpe().backend_tokenizer.to_str())
    core.pre_tokenizer = ByteLevel(add_prefix_space=True)
    core.enable_truncation(8)  # which a call of the tokenizer switches off
    core.enable_padding(length=64)
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def follows_its_file(folder, tokenizer):
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_truncation()
    own.no_padding()
    return tokenizer(TEXT, add_special_tokens=False)["input_ids"] == own.encode(TEXT).ids


def test_a_familys_tokenizer_over_another_ones_file_is_told(tmp_path):
    folder = saved(tmp_path, "Qwen2Tokenizer", "qwen2")
    with pytest.warns(MeasurementWarning, match=r"Qwen2Tokenizer .* tokenizer\.json"):
        tokenizer = load_tokenizer(folder)
    assert not follows_its_file(folder, tokenizer)


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [("PreTrainedTokenizerFast", "qwen2"), ("LlamaTokenizerFast", "llama")],
)
def test_a_tokenizer_that_follows_its_file_is_no_news(tmp_path, kind, model_type):
    folder = saved(tmp_path, kind, model_type)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeasurementWarning)
        tokenizer = load_tokenizer(folder)
    assert follows_its_file(folder, tokenizer)
