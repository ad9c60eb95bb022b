"""Each phrase after each prompt, teacher-forced, a row of its own: plainly, and under processors.

`score_by_rows` is the oracle that faster ways are compared with; `score_by_processors` puts the
logits through processors, token by token, as a generation does.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ..models.architecture import reading_ends
from ..models.batching import LengthRule, forgetting_lengths, padding_known
from ..models.generation import Ids, begin, input_device, require_numbers
from ..models.whole_texts import looks_ahead


@torch.no_grad()
def score_by_rows(
    model: Any,
    input_ids: Sequence[Ids],
    phrase_ids: Sequence[Sequence[int]],
    rows: Sequence[int] | None = None,
) -> Float64[Tensor, "prompts phrases"]:
    """Return what `row_scores` does, as numbers alone."""
    return row_scores(model, input_ids, phrase_ids, rows)


def row_scores(
    model: Any,
    input_ids: Sequence[Ids],
    phrase_ids: Sequence[Sequence[int]],
    rows: Sequence[int] | None = None,
) -> Float64[Tensor, "prompts phrases"]:
    """Return log P(phrase | prompt), differentiably, with the prompt run again for each phrase.

    Rows are padded on the right, where a causal model cannot look: no mask and no position ids are
    needed, so that this holds for every architecture. Where padding changes a model all the same,
    phrases are run alone; and each token is read off a pass over no more text than goes before it
    or is computed alike (`batching`). A model that looks ahead has a pass for each token.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: encoded prompts.
        phrase_ids: the phrases' ids, none of them empty.
        rows: the prompts' numbers, for messages.

    Returns:
        Natural logarithms, float64.
    """
    numbers = range(len(input_ids)) if rows is None else rows
    ahead = bool(len(input_ids)) and phrase_looks_ahead(
        model, input_ids[0], max(phrase_ids, key=len)
    )
    spans = _each_alone if ahead else LengthRule.of(model).spans
    groups = [[row] for row in range(len(phrase_ids))]
    if padding_known(model, "right") is not False and not ahead:
        groups = [[row for each in groups for row in each]]
    scores = []
    for number, prompt in zip(numbers, input_ids, strict=True):
        own: dict[int, Tensor] = {}
        for group in groups:
            phrases = [phrase_ids[row] for row in group]
            longest = max(map(len, phrases)) - 1  # the last token is read and never run
            parts = [
                _read(model, prompt, phrases, span, number) for span in spans(len(prompt), longest)
            ]
            own |= dict(zip(group, torch.stack(parts).sum(0), strict=True))
        scores.append(torch.stack([own[row] for row in range(len(phrase_ids))]))
    return torch.stack(scores).cpu()


def _read(
    model: Any,
    prompt: Ids,
    phrases: Sequence[Sequence[int]],
    span: tuple[int, int],
    number: int,
) -> Float64[Tensor, " phrases"]:
    """Return Σ log p(y_t | x, y_<t) over the phrases' tokens from `span[0]` to `span[1]`."""
    first, last = span
    batch = [[*map(int, prompt), *ids[:last], *[0] * (last - len(ids))] for ids in phrases]
    texts = torch.tensor(batch, device=input_device(model))
    logits = _logits_from(model, texts, len(prompt) - 1 + first)
    sums, broken = [], []
    for row, ids in zip(logits, phrases, strict=True):  # one copy in float64 at a time
        tokens = torch.tensor(list(ids[first : last + 1]), dtype=torch.long)
        log_p = row.double().log_softmax(-1)
        sums.append(log_p[torch.arange(len(tokens)), tokens].sum())
        broken.append(log_p.isnan().any())
    require_numbers(torch.stack(broken).any()[None], [number])
    return torch.stack(sums)


def _logits_from(
    model: Any, texts: Int[Tensor, "rows seq"], start: int
) -> Float[Tensor, "rows steps vocab"]:
    """Return the logits of texts from a position on; those before it are not computed."""
    number = texts.shape[1] - start
    with forgetting_lengths(model), reading_ends(model, number):
        return model(texts, use_cache=False).logits[:, -number:]


def score_by_processors(
    model: Any,
    input_ids: Sequence[Ids],
    phrase_ids: Sequence[Sequence[int]],
    processors: Sequence[LogitsProcessor],
    *,
    batch_size: int = 8,
    rows: Sequence[int] | None = None,
) -> Float64[Tensor, "prompts phrases"]:
    """Return log P(phrase | prompt) under the processors.

    A processor may keep a cache of its own, so that no pass can be shared between phrases: one
    prompt at a time, with phrases as rows, and a call for each token. A phrase that begins another
    one is read off it.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: encoded prompts.
        phrase_ids: the phrases' ids, none of them empty.
        processors: as `mitigations.applied` yields them.
        batch_size: phrases at a time.
        rows: the prompts' numbers, for messages.

    Returns:
        Natural logarithms, float64; −∞ where a processor rules a phrase out.
    """
    numbers = range(len(input_ids)) if rows is None else rows
    phrases = [tuple(ids) for ids in phrase_ids]
    longest = [p for p in dict.fromkeys(phrases) if not any(_extends(q, p) for q in phrases)]
    scores = torch.empty(len(input_ids), len(phrases), dtype=torch.float64)
    ahead = bool(len(input_ids)) and phrase_looks_ahead(model, input_ids[0], max(longest, key=len))
    size = 1 if ahead or padding_known(model, "right") is False else batch_size
    for row, (number, prompt) in enumerate(zip(numbers, input_ids, strict=True)):
        found: dict[tuple[int, ...], Tensor] = {}
        for start in range(0, len(longest), size):
            part = longest[start : start + size]
            steps = _steps(model, prompt, part, processors, number)
            for phrase, own in zip(part, steps.cumsum(-1), strict=True):
                found |= {phrase[: t + 1]: own[t] for t in range(len(phrase))}
        scores[row] = torch.stack([found[phrase] for phrase in phrases])
    return scores


def phrase_looks_ahead(model: Any, prompt: Ids, phrase: Sequence[int]) -> bool:
    """Return whether a phrase behind a prompt changes the prompt's logits.

    Args:
        model: a language model in evaluation mode.
        prompt: token ids.
        phrase: token ids, at least one.
    """
    text = torch.tensor([*map(int, prompt), *phrase], device=input_device(model))
    return looks_ahead(model, text, len(prompt))


def _each_alone(length: int, more: int) -> list[tuple[int, int]]:
    """Return the runs of 0 … `more` further tokens where each has to be read off its own pass."""
    return [(place, place) for place in range(more + 1)]


def _extends(phrase: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(phrase) > len(other) and phrase[: len(other)] == other


@torch.no_grad()
def _steps(
    model: Any,
    prompt: Ids,
    phrases: Sequence[tuple[int, ...]],
    processors: Sequence[LogitsProcessor],
    number: int,
) -> Float64[Tensor, "phrases steps"]:
    """Return log P of every phrase's every token after the ones before it; 0 behind its end."""
    length, longest = len(prompt), max(map(len, phrases))
    texts = torch.tensor(
        [[*map(int, prompt), *ids, *[0] * (longest - len(ids))] for ids in phrases],
        device=input_device(model),
    )
    logits = _plain_logits(model, texts, length)
    begin(processors, torch.ones_like(texts[:, :length]))
    change = LogitsProcessorList(processors)
    steps = torch.zeros(len(phrases), longest, dtype=torch.float64)
    for t in range(longest):
        # A float32 copy, as generate() passes it on.
        plain = logits[:, t].to(torch.float32, copy=True)
        require_numbers(plain.isnan().any()[None], [number])
        seen: Any = texts[:, : length + t]
        changed = change(seen, plain).double().log_softmax(-1)
        require_numbers(changed.isnan().any()[None], [number])
        _put(steps, t, changed.cpu(), phrases)
    return steps


def _plain_logits(
    model: Any, texts: Int[Tensor, "phrases seq"], length: int
) -> Float[Tensor, "phrases steps vocab"]:
    """Return the logits before every token behind the prompt's `length`.

    Each is read off a pass over no more text than goes before it or is computed alike.
    """
    found = []
    more = texts.shape[1] - length - 1
    ahead = phrase_looks_ahead(model, texts[0, :length], texts[0, length:].tolist())
    for first, last in (_each_alone if ahead else LengthRule.of(model).spans)(length, more):
        found.append(_logits_from(model, texts[:, : length + last], length - 1 + first))
    return torch.cat(found, 1)


def _put(
    steps: Float64[Tensor, "phrases steps"],
    t: int,
    changed: Float64[Tensor, "phrases vocab"],
    phrases: Sequence[Sequence[int]],
) -> None:
    """Write log P of token t of the phrases that have one."""
    going = [row for row, ids in enumerate(phrases) if len(ids) > t]
    tokens: Int[Tensor, " going"] = torch.tensor([phrases[row][t] for row in going])
    steps[going, t] = changed[going, tokens]
