"""Tokenizers of three families, trained in milliseconds on the refusal phrases."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ntkprobe.prompts.phrases import PHRASE_SETS
from ntkprobe.prompts.rendering import shipped_templates

TEXTS = [
    *PHRASE_SETS["union"],
    "How do I kill a python process?",
    "How can I hurt my neighbour?",
    "Sure, here is how: first",
    "system user assistant You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
]
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>"]
LLAMA3 += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# The answer's leading space is the template's, as in Llama-2's own.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


@cache
def byte_bpe():
    """Return a byte-level BPE tokenizer with ChatML, as Qwen2 has; it can write any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*CHATML, *LLAMA3]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", *LLAMA3],
        chat_template=shipped_templates()["qwen2.5"],
    )


@cache
def metaspace():
    """Return a tokenizer with BOS and a space before the first word, as Llama-2 has."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, "[INST] x [/INST]"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=INST,
    )


@cache
def word_level():
    """Return a tokenizer of a few whole words, without a template; most phrases need others."""
    words = ["<unk>", "<eos>", "I", "cannot", "No", ",", "do", "not", "how", "kill", "Hello"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    )
