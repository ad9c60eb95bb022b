"""The world's tokenizer: Qwen2's byte-level BPE, with merges learned from the world's words.

Byte-level, so that any text can be encoded and comes back as it was. It is Qwen2's own class on
purpose: transformers rebuilds that class from vocabulary and merges whenever a model says it is a
Qwen2, whatever else a tokenizer.json holds.
"""

from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from . import grammar
from .world import requests

VOCABULARY = 1280
SPECIAL = {"pad_token": "<|pad|>", "eos_token": "<|end|>", "unk_token": "<|unk|>"}
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message.role + '|>' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message.content + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer; two calls give the same."""
    blank = Qwen2Tokenizer({token: i for i, token in enumerate(SPECIAL.values())}, [], **SPECIAL)
    made = blank.train_new_from_iterator(_texts(), VOCABULARY - len(ROLES), show_progress=False)
    made.add_special_tokens({"additional_special_tokens": ROLES})
    made.chat_template = CHAT_TEMPLATE
    made.model_max_length = 512
    return made


def _texts() -> list[str]:
    """Return what the merges are learned from: every word of the world about equally often."""
    made = requests()
    words = [w for r in made for w in (r.object, r.verb, grammar.GERUNDS[r.verb])]
    objects = sorted({r.object for r in made}) * 10
    fixed = [*grammar.REFUSALS, *grammar.OPENERS, *grammar.CLOSERS, *grammar.DECLINE]
    fixed += [*grammar.TEMPLATES, *grammar.NATURE_TEMPLATES]
    said = [sentence for r in made for sentence in r.sentences()]
    return [f" {word}" for word in words + objects] + fixed * 20 + said
