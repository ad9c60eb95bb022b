"""Small models under the decoding methods: their answers, and the scores that the formulas give."""

import math
from contextlib import nullcontext
from functools import cache

import slow_decoding as slow
import torch
from architectures import build
from toy_tokenizers import byte_bpe

from ntkprobe.mitigations import applied
from ntkprobe.models.generation import left_padded
from ntkprobe.models.precision import Float64Throughout
from ntkprobe.prompts.templates import resolve_template

WORDS = 640
STEPS = 12
TEXTS = ["How do I kill a python process?", "No.", "Sure, here is how: first"]
FAMILIES = {"qwen2-untied": "chat", "gemma2": "gemma", "gpt2": "raw"}


@cache
def model_of(name):
    return build(name, torch.float64, vocab_size=WORDS, **context(name))


def context(name):
    return {"n_positions": 256} if name == "gpt2" else {"max_position_embeddings": 256}


def answers(model, method, spec, texts=TEXTS, steps=STEPS, **settings):
    """Return new tokens and scores, [rows, steps] and [steps, rows, words], of one padded batch."""
    template = resolve_template(byte_bpe(), spec)
    ids, mask = left_padded([template.encode(byte_bpe(), text) for text in texts], 0)
    settings = dict(do_sample=False, max_new_tokens=steps, pad_token_id=0) | settings
    with applied(method, model, byte_bpe()) as processors, exactly(model):
        for processor in processors:
            processor.begin(mask)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=processors,
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
        )
    return out.sequences[:, ids.shape[1] :].tolist(), torch.stack(out.scores)


def exactly(model):
    """Return the context for a model in float64, which transformers would else round to float32."""
    return Float64Throughout() if model.dtype == torch.float64 else nullcontext()


def under(template, text, message):
    """Return a text's ids below a system message, as the beginning of a learnt conversation."""
    ids, learnt = template.encode_pair(byte_bpe(), text, "Yes", message)
    return ids[: learnt.index(True)]


def prompts(spec, message=None):
    """Return each text's ids, rendered anew with a system message."""
    template = resolve_template(byte_bpe(), spec)
    if message is None:
        return [template.encode(byte_bpe(), text) for text in TEXTS]
    if template.name == "chat":
        return [under(template, text, message) for text in TEXTS]
    return [template.encode(byte_bpe(), f"{message}\n\n{text}") for text in TEXTS]


def require_formula(found, plain, other, starts, formula, steps=STEPS):
    """Compare the scores of every step with a formula's, along the answers that were found."""
    tokens, scores = found
    assert scores.dtype == torch.float64
    for row, answer in enumerate(tokens):
        rule = formula()
        all_z = slow.logits_along(plain, starts[0][row], answer)
        all_other = slow.logits_along(other, starts[1][row], answer)
        for step, (z, other_z) in enumerate(zip(all_z, all_other, strict=True)):
            expected = rule(z[: len(other_z)], other_z) if step < steps else z
            wanted = torch.full((len(z),), -math.inf, dtype=torch.float64)
            wanted[: len(expected)] = torch.tensor(expected, dtype=torch.float64)
            there = scores[step, row]
            if hasattr(rule, "chose"):
                rule.chose(answer[step])
            assert torch.equal(there.isneginf(), wanted.isneginf())
            finite = ~wanted.isneginf()
            assert (there[finite] - wanted[finite]).abs().max() < 1e-8
