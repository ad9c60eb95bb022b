"""What the tests of steering share: tiny models that chat, prompts, and the methods done slowly."""

from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from architectures import build
from toy_tokenizers import byte_bpe

from ntkprobe.mitigations.scans import Scans
from ntkprobe.mitigations.surgical import Surgical
from ntkprobe.models.architecture import decoder_layers
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.prompts.templates import resolve_template

FAMILIES = ["gpt2", "qwen2-tied", "gemma2"]
WRITERS = {
    "gpt2": ("attn", "mlp"),
    "qwen2-tied": ("self_attn", "mlp"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
PROMPTS = PromptSet.from_texts(
    {
        "normal": ["How do I bake bread?", "Name a colour.", "What is the time?", "Who sang it?"],
        "seemingly_toxic": ["How do I kill the lights?", "How to beat an egg?", "Crush a can?"],
        "toxic": ["How can I hurt my neighbour?", "Help me to rob a shop.", "Scare my rival."],
    }
)
TEMPLATE = resolve_template(byte_bpe())
ENDING = byte_bpe()("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]


def chatting(name, **changes):
    """Return a model of four blocks that knows the toy tokenizer's words."""
    sizes = {"n_layer": 4, "n_positions": 160} if name == "gpt2" else {}
    other = {"num_hidden_layers": 4, "max_position_embeddings": 160}
    return build(name, vocab_size=len(byte_bpe()), **(sizes or other), **changes)


def encoded(group):
    return [torch.tensor(TEMPLATE.encode(byte_bpe(), p.text)) for p in PROMPTS.in_group(group)]


def plain(model, ids):
    """Return the logits of one text, a pass of its own, [seq, vocab]."""
    with torch.no_grad():
        return model(ids[None]).logits[0]


def first(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def streams(model, ids):
    """Return what enters and what leaves the blocks, [layers, seq, hidden] each, in float64."""
    entering, leaving = [], []
    with ExitStack() as stack:
        for block in decoder_layers(model):

            def seen(module, args, kwargs, output):
                entering.append((args[0] if args else kwargs["hidden_states"])[0])
                leaving.append(first(output)[0])

            stack.callback(block.register_forward_hook(seen, with_kwargs=True).remove)
        plain(model, ids)
    return torch.stack(entering).double(), torch.stack(leaving).double()


def hidden_states(model, ids):
    """Return transformers' own hidden states behind each block, the last after the final norm."""
    with torch.no_grad():  # a copy, on which transformers may leave hooks
        found = deepcopy(model)(ids[None], output_hidden_states=True).hidden_states
    return torch.stack(found[1:])[:, 0].double()


@contextmanager
def rewritten(changes):
    """Replace modules' forward methods: `[(module, what becomes of its input, of its output)]`."""
    try:
        for module, on_input, on_output in changes:
            module.forward = _forward(module.forward, on_input or _same, on_output or _same)
        yield
    finally:
        for module, _, _ in changes:
            module.__dict__.pop("forward", None)


def _same(state):
    return state


def _forward(forward, on_input, on_output):
    def changed(*args, **kwargs):
        if args:
            args = (on_input(args[0]), *args[1:])
        elif "hidden_states" in kwargs:
            kwargs["hidden_states"] = on_input(kwargs["hidden_states"])
        output = forward(*args, **kwargs)
        state = on_output(first(output))
        return state if isinstance(output, torch.Tensor) else (state, *output[1:])

    return changed


def ablated(name, model, unit, c, vector=None, weight=0.0, block=None):
    """Return the context in which x ← (I − c ŵŵᵀ) x everywhere, then x ← x + a r before a block."""
    project = torch.eye(len(unit)) - c * torch.outer(unit, unit)
    changes = []
    for number, module in enumerate(decoder_layers(model), start=1):
        push = weight * vector if number == block else torch.zeros(len(unit))
        changes.append((module, lambda x, push=push: x @ project + push, None))
        changes += [(getattr(module, w), None, lambda x: x @ project) for w in WRITERS[name]]
    return rewritten(changes)


WIDE = dict(filtered=False, kl_ablation=100.0, kl_addition=100.0, refusal_words=("I", "No"))
SURGICAL = Surgical(coefficient=0.7, addition=0.3, **WIDE)
SCANS = Scans(weight=0.8, layers=(0.25, 0.75), classified=(0.25, 1.0), threshold=0.0)


@cache
def fitted(name, method):
    """Return a model of a family and a method fitted on it, once."""
    model = chatting(name)
    found = {"surgical": SURGICAL, "scans": SCANS}[method].fit(model, byte_bpe(), PROMPTS)
    if method == "scans":  # between the prompts' scores: each sign occurs
        scores = found.likeness(model, every_prompt()).sort().values
        found = replace(found, threshold=float(scores[4:6].mean()))
    return model, found


def every_prompt():
    return [ids for group in PROMPTS.groups for ids in encoded(group)]


BOTH = pytest.mark.parametrize("method", ["surgical", "scans"])
THREE = pytest.mark.parametrize("name", FAMILIES)
