"""Greedy answers in batches, and the padding that every batch of ragged prompts needs."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import LongTensor, Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from ..errors import UserError, count
from ..progress import progress as long_stage
from . import batching
from .answers import Answer as Answer
from .answers import answer_of, greedy_tokens, stopping_criteria, written
from .batching import length_batches as length_batches
from .cached import CachedPrompts, batches, usable
from .logits import try_padding
from .precision import clamped_casts
from .validation import check_computable, check_measurable, check_prompts
from .validation import require_numbers as require_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[int] | Tensor
"""Token ids of one text, a tensor or not."""


def generate_answers(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    input_ids: Sequence[Ids],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    stop_ids: Sequence[int] = (),
    stop_texts: Sequence[str] = (),
    logits_processor: Sequence[LogitsProcessor] = (),
    progress: bool = False,
) -> list[str]:
    """Return the model's greedy answers, the same for every batch size (in float32).

    Nothing but the arg max decides: a checkpoint's own generation settings (sampling, repetition
    penalty, suppressed tokens) are set aside, and stop tokens alone are taken from them.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: decodes; its padding side plays no part and is left alone.
        input_ids: encoded prompts, of any lengths.
        max_new_tokens: an answer's length at most, in tokens.
        batch_size: prompts at a time; prompts of similar length go together.
        stop_ids: tokens that end an answer besides EOS, such as `template.stop_ids(tokenizer)`.
        stop_texts: texts that end an answer and are no part of it, such as
            `template.stop_texts(tokenizer)`.
        logits_processor: what changes the logits first, as `mitigations.applied` yields it.
        progress: show a bar on stderr.

    Returns:
        Texts without special tokens, in the order of the prompts. What cannot be measured (see
        `require_measurable`) and NaN logits are a `UserError`.
    """
    require_measurable(model, input_ids, new_tokens=count("max_new_tokens", max_new_tokens))
    answers = [""] * len(input_ids)
    with long_stage(
        total=len(answers), disable=not progress, desc="answers", unit="prompt", leave=False
    ) as bar:
        if not logits_processor and usable(model, input_ids, max_new_tokens - 1):
            for rows, kept in batches(model, input_ids, count("batch_size", batch_size)):
                found = answer_cached(
                    kept,
                    tokenizer,
                    max_new_tokens=max_new_tokens,
                    stop_ids=stop_ids,
                    stop_texts=stop_texts,
                    rows=rows,
                )
                for row, answer in zip(rows, found, strict=True):
                    answers[row] = answer.text
                bar.update(len(rows))
            return answers
        try_left_padding(model, input_ids, logits_processor)
        for batch in length_batches(input_ids, batch_size):
            for rows in answered_together(model, input_ids, batch, max_new_tokens):
                new = answer_batch(
                    model,
                    tokenizer,
                    [input_ids[row] for row in rows],
                    max_new_tokens=max_new_tokens,
                    stop_ids=stop_ids,
                    stop_texts=stop_texts,
                    logits_processor=logits_processor,
                    rows=rows,
                )
                for row, answer in zip(rows, new, strict=True):
                    answers[row] = answer.text
                bar.update(len(rows))
    return answers


def answered_together(
    model: Any, input_ids: Sequence[Ids], batch: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Return a batch's row numbers in groups that may be answered at the same time.

    Args:
        model: a causal language model.
        input_ids: encoded prompts.
        batch: row numbers.
        max_new_tokens: an answer's length at most, in tokens; the last of them is never run.
    """
    prompts = [input_ids[row] for row in batch]
    groups = batching.together(model, prompts, new_tokens=max_new_tokens - 1, side="left")
    return [[batch[row] for row in rows] for rows in groups]


def answer_batch(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    input_ids: Sequence[Ids],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    stop_texts: Sequence[str] = (),
    logits_processor: Sequence[LogitsProcessor] = (),
    rows: Sequence[int] | None = None,
) -> list[Answer]:
    """Return the answers to one batch of prompts, which must be measurable.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: decodes.
        input_ids: encoded prompts, answered at the same time: one group of `answered_together`.
        max_new_tokens: an answer's length at most, in tokens.
        stop_ids: tokens that end an answer besides EOS.
        stop_texts: texts that end an answer and are no part of it.
        logits_processor: what changes the logits first.
        rows: the prompts' numbers, for messages.

    Returns:
        As `generate_answers`, with each answer's length and ending.
    """
    stops = _stops(model, tokenizer, stop_ids)
    padding = _padding_id(model, (tokenizer.pad_token_id, *stops))
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=padding,
    )
    numbers = list(range(len(input_ids)) if rows is None else rows)
    with _own_settings_aside(model):
        new = _generate(
            model,
            list(input_ids),
            settings,
            numbers,
            logits_processor,
            stopping_criteria(tokenizer, stop_texts, max(map(len, input_ids))),
        )
    return [answer_of(tokenizer, ids, stops, stop_texts) for ids in new]


def answer_cached(
    kept: CachedPrompts,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    stop_texts: Sequence[str] = (),
    rows: Sequence[int] | None = None,
) -> list[Answer]:
    """Return the answers to prompts whose keys and values are kept, as `answer_batch` gives them.

    Args:
        kept: the prompts; not changed.
        tokenizer: decodes.
        max_new_tokens: an answer's length at most, in tokens.
        stop_ids: tokens that end an answer besides EOS.
        stop_texts: texts that end an answer and are no part of it.
        rows: the prompts' numbers, for messages.
    """
    stops = _stops(kept.model, tokenizer, stop_ids)
    over = written(tokenizer, stop_texts) if stop_texts else None
    new = greedy_tokens(kept, stops, max_new_tokens, rows, over)
    return [answer_of(tokenizer, ids, stops, stop_texts) for ids in new]


def _stops(model: Any, tokenizer: "PreTrainedTokenizerBase", stop_ids: Sequence[int]) -> list[int]:
    """Return the tokens that end an answer."""
    return sorted({*_stop_ids(model), *stop_ids} | ({tokenizer.eos_token_id} - {None}))


def _padding_id(model: Any, known: Sequence[int | None]) -> int:
    """Return the first token that the model has; 0 where it has none of them.

    A `[PAD]` added to a tokenizer, or a stop token of a larger relative, may be outside.
    """
    words = model.get_input_embeddings().weight.shape[0]
    return next((t for t in known if t is not None and 0 <= t < words), 0)


@torch.no_grad()
def try_left_padding(
    model: Any, input_ids: Sequence[Ids], processors: Sequence[LogitsProcessor] = ()
) -> None:
    """Find out, for each model and length once, whether padding on the left changes its answers.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: the prompts to be answered; two of them are, for two tokens.
        processors: those in use; their method `begin` is called, and they change no logits here.
    """
    context = batching.context_length(text_config(model))
    fitting = [ids for ids in input_ids if context is None or len(ids) < context]
    pair = batching.pair_to_try(model, fitting, new_tokens=1, side="left")
    if pair is None:
        return
    prompts = [fitting[row] for row in pair]
    begin(processors, left_padded(prompts)[1])
    with _own_settings_aside(model):
        alone = [_two_steps(model, [ids]) for ids in prompts]
        beside = _two_steps(model, prompts)
    firsts, seconds = (torch.cat(step) for step in zip(*alone, strict=True))
    longest = len(prompts[1])
    batching.keep_verdict(model, "left", beside[0], firsts, longest)
    same = (firsts.argmax(-1) == beside[0].argmax(-1)).tolist()  # else the second steps differ
    if batching.padding_known(model, "left") and all(same):
        batching.keep_verdict(model, "left", beside[1], seconds, longest)


def _two_steps(model: Any, prompts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Return the logits, [batch, vocab], of the first two tokens of greedy answers."""
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=2,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    first, second = _generated(model, prompts, settings, []).logits
    return first, second


def begin(processors: Sequence[LogitsProcessor], attention_mask: Tensor) -> None:
    """Reset processors with a state for new sequences.

    Args:
        processors: those with a method `begin` have it called.
        attention_mask: [batch, prompt], 1 for the prompts' tokens and 0 for padding.
    """
    for processor in processors:
        if hasattr(processor, "begin"):
            processor.begin(attention_mask)


def left_padded(
    input_ids: Sequence[Ids], padding: int = 0, device: Any = None
) -> tuple[Tensor, Tensor]:
    """Return prompts as one batch, padded on the left: ids and mask, both [batch, longest]."""
    longest = max(len(ids) for ids in input_ids)
    gaps = [longest - len(ids) for ids in input_ids]
    ids = [[padding] * gap + list(map(int, ids)) for gap, ids in zip(gaps, input_ids, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def input_device(model: Any) -> torch.device:
    """Return the device that token ids go to, where a model lies on several."""
    return model.get_input_embeddings().weight.device


def require_measurable(
    model: nn.Module, input_ids: Sequence[Ids], new_tokens: int = 0, *, gradients: bool = False
) -> None:
    """Refuse what would give a wrong number rather than an error.

    Args:
        model: must be in evaluation mode, with all of its weights present.
        input_ids: must be neither empty nor, with `new_tokens`, longer than the model's context.
        new_tokens: tokens that come behind each prompt.
        gradients: whether the model's logits are to be differentiated.
    """
    (check_measurable if gradients else check_computable)(model)
    prompts = [torch.as_tensor(ids) for ids in input_ids]
    check_prompts(model, prompts, new_tokens)
    try_padding(model, prompts)


def require_vocabulary(model: Any, ids: Ids, what: str) -> None:
    """Refuse tokens that the model does not have.

    Args:
        model: a causal language model.
        ids: one or more token ids.
        what: whose they are, for the message.

    Raises:
        UserError: if there is one, as with another model's tokenizer.
    """
    size = model.get_input_embeddings().weight.shape[0]
    values = torch.as_tensor(ids)
    if not 0 <= int(values.min()) <= int(values.max()) < size:
        raise UserError(
            f"{what} holds a token outside the model's vocabulary of {size}: "
            "is the tokenizer another model's?"
        )


def text_config(model: Any) -> Any:
    """Return the configuration of the language model, also of a multimodal one."""
    return model.config.get_text_config()


def _stop_ids(model: Any) -> list[int]:
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if own is None else own if isinstance(own, list) else [own]


@contextmanager
def _own_settings_aside(model: Any) -> Generator[None]:
    # generate() fills whatever a call leaves open from the checkpoint's generation_config.json.
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = owner.generation_config
    owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = own


class _RefuseNan(LogitsProcessor):
    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def __call__(self, input_ids: LongTensor, scores: Any) -> Any:
        require_numbers(scores.isnan().any(-1), self.rows)
        return scores


@torch.no_grad()
def _generate(
    model: Any,
    prompts: list[Ids],
    settings: GenerationConfig,
    rows: list[int],
    processors: Sequence[LogitsProcessor],
    criteria: StoppingCriteriaList,
) -> list[list[int]]:
    _, mask = left_padded(prompts)
    begin(processors, mask.to(input_device(model)))
    out = _generated(model, prompts, settings, [_RefuseNan(rows), *processors], criteria)
    return out[:, mask.shape[1] :].tolist()


def _generated(
    model: Any,
    prompts: Sequence[Ids],
    settings: GenerationConfig,
    processors: Sequence[LogitsProcessor],
    criteria: StoppingCriteriaList | None = None,
) -> Any:
    """Return what the model's own `generate` does for prompts in one batch."""
    ids, mask = left_padded(prompts, settings.pad_token_id, input_device(model))
    with batching.forgetting_lengths(model), clamped_casts(model):
        return model.generate(
            input_ids=ids,
            attention_mask=mask,  # from which generate() derives the position ids
            generation_config=settings,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=criteria,
        )
