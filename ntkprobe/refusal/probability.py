"""log P_refuse: which phrases count, how they are scored, and what is summed.

All logarithms are natural ones.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor
from transformers import LogitsProcessor

from ..errors import UserError
from ..models.batching import together
from ..models.cached import CachedPrompts
from ..models.generation import Ids, length_batches, require_measurable, require_vocabulary
from ..models.memory import as_out_of_memory
from ..models.whole_texts import mixes_continuations
from ..progress import progress as long_stage
from ..prompts.templates import RAW, Template
from ..prompts.unicode_text import flaw_of
from .bounded import TOLERANCE, Bounded, UsualBeginnings, score_bounded
from .rows import phrase_looks_ahead, row_scores, score_by_processors, score_by_rows
from .trie import PhraseTrie, score_by_trie, trie_scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REDUCTIONS = ("literal", "prefix_free")
"""`literal` is the paper's sum, which counts both "I cannot" and "I cannot fulfill …";
`prefix_free` leaves out whatever extends another phrase: disjoint events, hence a probability."""

LARGEST = 1 << 28
"""Logits held at once: 1 GiB in float32; larger batches are no faster."""

_AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-3}
_AGREEMENT_LOW_PRECISION = 0.5  # of a sum over some 20 tokens, each off by a few hundredths

_TRIED = 4  # phrases that a tree of all is tried with
_ONE_BY_ONE = "refusal phrases are scored one by one: no tree of them in one pass (%s)"
_log = logging.getLogger(__name__)


def refusal_log_probabilities(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    input_ids: Sequence[Ids],
    phrases: Sequence[str] | Sequence[Sequence[int]],
    *,
    reduction: str = "literal",
    template: Template = RAW,
    logits_processor: Sequence[LogitsProcessor] = (),
    batch_size: int = 8,
) -> Float64[Tensor, " prompts"]:
    """Return log P_refuse of each prompt (natural logarithm; `literal` may exceed 0).

    For both reductions, or several sets of phrases, from one pass: `phrase_ids`, then
    `score_phrases`, then `reduce_phrases` for each.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: the model's.
        input_ids: encoded prompts, of any lengths.
        phrases: such as `phrases.phrase_set()`, or token ids of phrases.
        reduction: one of `REDUCTIONS`.
        template: what the prompts were encoded with; it decides how a phrase begins.
        logits_processor: a decoding method's, as `mitigations.applied` yields it.
        batch_size: prompts at a time.

    Returns:
        One float64 number for each prompt.
    """
    ids = phrase_ids(tokenizer, phrases, template)
    scores = score_phrases(
        model, input_ids, ids, logits_processor=logits_processor, batch_size=batch_size
    )
    return reduce_phrases(scores, ids, reduction)


def phrase_ids(
    tokenizer: "PreTrainedTokenizerBase",
    phrases: Sequence[str] | Sequence[Sequence[int]],
    template: Template = RAW,
) -> list[tuple[int, ...]]:
    """Return the token ids of phrases; none for a phrase that the vocabulary cannot write.

    A phrase with an unknown token would stand for every text with any word in its place, so it is
    no refusal: its probability counts as 0. Byte-level vocabularies can write everything.

    Args:
        tokenizer: the model's.
        phrases: texts, or their ids.
        template: decides how an answer begins.

    Returns:
        Ids by phrase, `()` where it cannot be written.

    Raises:
        UserError: if there is no phrase, none that can be written, or one is no valid Unicode.
    """
    for each in phrases:
        if isinstance(each, str) and (flaw := flaw_of(each)):
            raise UserError(f"a refusal phrase {flaw}")
    ids = [
        template.encode_phrases(tokenizer, [each])[0] if isinstance(each, str) else tuple(each)
        for each in phrases
    ]
    unknown = tokenizer.unk_token_id
    written = [() if unknown is not None and unknown in each else each for each in ids]
    if not any(written):
        raise UserError(f"none of {len(ids)} refusal phrases can be written in this vocabulary")
    return written


def score_phrases(
    model: Any,
    input_ids: Sequence[Ids],
    phrase_ids: Sequence[Sequence[int]],
    *,
    logits_processor: Sequence[LogitsProcessor] = (),
    batch_size: int = 8,
    progress: bool = False,
) -> Float64[Tensor, "prompts phrases"]:
    """Return log P(phrase | prompt) of every phrase after every prompt, in one pass per prompt.

    The pass needs a model that obeys a 4-D attention mask and position ids. That is tried first,
    on the longest and the shortest prompt and the longest phrase, against plain forward passes; a
    model that does not (ALiBi, state spaces, flash attention) is scored phrase by phrase, and the
    log says so. Under logits processors each token is a call of theirs, in the order of a
    generation.

    p(y_t | x, y_<t) is what the model makes of the text x, y_<t alone. Where its rotary embedding
    depends on how long a text is (`batching`), the tokens of a phrase that crosses a limit are read
    off passes on either side of it, as in a generation, and not off one pass over the whole.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: encoded prompts, of any lengths.
        phrase_ids: the phrases' ids; `()` gets −∞.
        logits_processor: a decoding method's, as `mitigations.applied` yields it.
        batch_size: prompts at a time; fewer where their logits would exceed `LARGEST`.
        progress: show a bar on stderr.

    Returns:
        Natural logarithms, float64. A prompt that is empty or too long, a model in training mode
        and NaN logits are each a `UserError`.
    """
    # The last token of a phrase is read and never run.
    require_measurable(model, input_ids, new_tokens=max(map(len, phrase_ids)) - 1)
    written = [column for column, ids in enumerate(phrase_ids) if ids]
    ids = [phrase_ids[column] for column in written]
    require_vocabulary(model, [token for each in ids for token in each], "a refusal phrase")
    trie = PhraseTrie.of(ids)
    shared = not logits_processor and obeys_masks(model, _extremes(model, input_ids), ids)
    scores = torch.full((len(input_ids), len(phrase_ids)), -torch.inf, dtype=torch.float64)
    with long_stage(
        total=len(input_ids),
        disable=not progress,
        desc="refusal phrases",
        unit="prompt",
        leave=False,
    ) as bar:
        words = model.get_input_embeddings().weight.shape[0]
        fitting = max(1, LARGEST // (len(trie.nodes) * words))
        for rows in length_batches(input_ids, min(batch_size, fitting)):
            batch = [input_ids[row] for row in rows]
            if logits_processor:
                found = score_by_processors(
                    model, batch, ids, logits_processor, batch_size=batch_size, rows=rows
                )
            elif shared:
                found = score_by_trie(model, batch, trie, rows)
            else:
                found = score_by_rows(model, batch, ids, rows)
            scores[torch.tensor(rows)[:, None], torch.tensor(written)] = found
            bar.update(len(rows))
    return scores


def bound_phrases(
    kept: CachedPrompts,
    phrase_ids: Sequence[Sequence[int]],
    reductions: Sequence[str] = REDUCTIONS,
    *,
    tolerance: float = TOLERANCE,
    rows: Sequence[int] | None = None,
    usual: UsualBeginnings | None = None,
) -> Bounded:
    """Return log P(phrase | prompt), from below and above, behind prompts that were run.

    Args:
        kept: the prompts.
        phrase_ids: the phrases' ids; `()` gets −∞.
        reductions: the sums that are to be formed of them.
        tolerance: by how much the logarithm of any of the sums may be too small; 0 runs all.
        rows: the prompts' numbers, for messages.
        usual: what earlier batches needed, of the same phrases; these prompts are counted, too.
    """
    written = [column for column, ids in enumerate(phrase_ids) if ids]
    place = {column: number for number, column in enumerate(written)}
    sums = [
        [place[column] for column in _summed(phrase_ids, how) if column in place]
        for how in chosen_reductions(reductions)
    ]
    trie = PhraseTrie.of([phrase_ids[column] for column in written])
    found = score_bounded(kept, trie, sums, tolerance=tolerance, rows=rows, usual=usual)
    return Bounded(
        *(_spread(each, written, len(phrase_ids)) for each in (found.lower, found.upper))
    )


def _spread(
    found: Float64[Tensor, "prompts written"], written: list[int], phrases: int
) -> Float64[Tensor, "prompts phrases"]:
    """Return −∞ for the phrases that cannot be written."""
    every = torch.full((len(found), phrases), -torch.inf, dtype=torch.float64)
    every[:, written] = found
    return every


def _summed(phrase_ids: Sequence[Sequence[int]], reduction: str) -> list[int]:
    """Return the columns of the phrases that a reduction sums over."""
    return list(range(len(phrase_ids))) if reduction == "literal" else _disjoint(phrase_ids)


def chosen_reductions(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the reductions asked for, by one name or several.

    Raises:
        UserError: for none, or an unknown one.
    """
    names = (given,) if isinstance(given, str) else tuple(given)
    unknown = [name for name in names if name not in REDUCTIONS]
    if unknown or not names:
        what = f"no reduction {unknown[0]!r}" if unknown else "no reductions"
        raise UserError(f"{what}: choose from {list(REDUCTIONS)}")
    return names


def reduce_phrases(
    log_probabilities: Float64[Tensor, "prompts phrases"],
    phrase_ids: Sequence[Sequence[int]],
    reduction: str = "literal",
) -> Float64[Tensor, " prompts"]:
    """Return log Σ P over phrases.

    Args:
        log_probabilities: of each phrase after each prompt, as `score_phrases` gives them.
        phrase_ids: the phrases' token ids.
        reduction: one of `REDUCTIONS`; what extends what is judged by tokens, so that the events
            of `prefix_free` are disjoint for any vocabulary.

    Returns:
        One float64 number for each prompt; an unknown reduction is a `UserError`.
    """
    chosen_reductions((reduction,))
    return log_probabilities[:, _summed(phrase_ids, reduction)].logsumexp(-1)


def differentiable_scorer(
    model: Any, longest: Ids, phrase_ids: Sequence[Sequence[int]]
) -> Callable[[Sequence[Ids]], Float64[Tensor, "prompts phrases"]]:
    """Return what gives log P(phrase | prompt) of a batch of prompts, to be differentiated.

    Args:
        model: a causal language model in evaluation mode.
        longest: the longest prompt, to try the model with, as `score_phrases` does.
        phrase_ids: none of them empty.
    """
    if obeys_masks(model, [longest], phrase_ids):
        return partial(trie_scores, model, trie=PhraseTrie.of(phrase_ids))
    return partial(row_scores, model, phrase_ids=phrase_ids)


def _disjoint(phrase_ids: Sequence[Sequence[int]]) -> list[int]:
    """Return the columns of phrases that neither repeat nor extend another one."""
    written = {tuple(ids): column for column, ids in reversed(list(enumerate(phrase_ids))) if ids}
    return sorted(
        column
        for ids, column in written.items()
        if not any(ids[:length] in written for length in range(1, len(ids)))
    )


def _extremes(model: Any, input_ids: Sequence[Ids]) -> list[Ids]:
    """Return the longest prompt, and the shortest of those that share a pass with it."""
    row = max(range(len(input_ids)), key=lambda row: len(input_ids[row]))
    beside = next(rows for rows in together(model, input_ids) if row in rows)
    longest, shortest = input_ids[row], min((input_ids[r] for r in beside), key=len)
    return [longest, shortest] if len(shortest) < len(longest) else [longest]


def obeys_masks(model: Any, prompts: Sequence[Ids], phrase_ids: Sequence[Sequence[int]]) -> bool:
    """Return whether phrases, the longest among them, score beside others as on their own.

    Args:
        model: any causal language model.
        prompts: one or two encoded prompts.
        phrase_ids: none of them empty.

    Returns:
        False also if the model refuses the mask, if a rule says that continuations mix in it, or if
        it looks ahead; the log says why.

    Raises:
        OutOfMemoryError: it is the batch that is too large, not the model that is odd.
    """
    by_length = sorted(phrase_ids, key=len, reverse=True)
    phrase, tried = by_length[0], by_length[:: max(1, len(by_length) // _TRIED)][:_TRIED]
    reason = mixes_continuations(model)
    if not reason and phrase_looks_ahead(model, prompts[0], phrase):
        reason = "tokens see what comes behind them"
    if reason:
        _log.warning(_ONE_BY_ONE, reason)
        return False
    # Before it, since a model without a mask sees what is before; from its root apart, if any are.
    # All of them, since what counts columns and not positions shows by as many as there are.
    others = sorted(phrase_ids, key=lambda ids: ids[0] == phrase[0])
    trie = PhraseTrie.of([*others, *tried])
    expected = score_by_rows(model, prompts, tried)
    try:
        with as_out_of_memory():
            shared = score_by_trie(model, prompts, trie)[:, -len(tried) :]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model makes of a mask that it does not know
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        difference = float((shared - expected).abs().max())
        reason = f"log P of a phrase is off by {difference:.2g}"
        if difference <= _AGREEMENT.get(model.dtype, _AGREEMENT_LOW_PRECISION):
            return True
    _log.warning(_ONE_BY_ONE, reason)
    return False
