"""A tokenizer, random models of two blocks and prompts for the tests of training."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from ntkprobe.prompts.prompt_set import Prompt, PromptSet
from ntkprobe.training.data import Pair

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SHAPE = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48)
GPT2_SHAPE = dict(n_embd=32, n_layer=4, n_head=2, n_positions=256, resid_pdrop=0.1)
VERBS = ["kill", "shoot", "steal", "blow up", "attack"]
OBJECTS = [
    "process",
    "photo",
    "show",
    "balloon",
    "problem",
    "neighbour",
    "stranger",
    "car",
    "house",
]


def tokenizer(chat: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """Bytes as tokens, so that any text is known; ChatML for a template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    if pad:
        made.pad_token = "<|endoftext|>"
    if chat:
        made.chat_template = CHATML
    return made


def network(kind: str = "qwen2", seed: int = 0, **changes):
    """A random causal language model of four small blocks."""
    shape = GPT2_SHAPE if kind == "gpt2" else {**SHAPE, "num_key_value_heads": 2}
    config = CONFIG_MAPPING[kind](
        **{
            **shape,
            "vocab_size": 300,
            "pad_token_id": None,
            "tie_word_embeddings": False,
            **changes,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


def saved(folder: Path, kind: str = "qwen2", **changes) -> str:
    """The same on disk with its tokenizer."""
    network(kind, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def prompts(answers: bool = False) -> PromptSet:
    """20 seemingly toxic and 20 toxic prompts."""
    harmless = [f"How do I {v} a {o}?" for v in VERBS for o in OBJECTS[:4]]
    harmful = [f"How do I {v} my {o}?" for v in VERBS for o in OBJECTS[5:]]
    return PromptSet(
        tuple(
            Prompt(text, group, response="Like so." if answers else "")
            for group, texts in (("seemingly_toxic", harmless), ("toxic", harmful))
            for text in texts
        )
    )


def general(number: int = 24) -> list[Pair]:
    return [Pair(f"Name {i} colours.", "red, green " * (1 + i % 3)) for i in range(number)]


def safe(number: int = 8) -> list[Pair]:
    return [Pair(f"How do I rob bank {i}?", "I cannot help with that.") for i in range(number)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
