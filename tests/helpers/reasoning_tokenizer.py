"""A tokenizer of bytes with the special tokens of many reasoning models, for tests of templates."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>"]
SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>"]
SPECIAL += ["<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>", "[THINK]", "[/THINK]"]
SPECIAL += ["<|start|>", "<|channel|>", "<|message|>", "<|return|>", "◁think▷", "◁/think▷"]
UNFLAGGED = ["<think>", "</think>", "<seed:think>", "</seed:think>", "\n\n"]


@cache
def tokenizer(eos="<|endoftext|>", unflagged=()):
    """Bytes as tokens; specials are flagged, and EOS alone is named."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(t, special=False) for t in (*UNFLAGGED, *unflagged)])
    core.add_special_tokens([token for token in SPECIAL if token not in unflagged])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos)
