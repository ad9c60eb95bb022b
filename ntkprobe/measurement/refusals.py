"""The probability that one model refuses each prompt, and whether its own answer does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from ..errors import UserError, count, require
from ..jupyter import paragraph, table
from ..models.cached import batches, usable
from ..models.generation import (
    answer_cached,
    generate_answers,
    require_measurable,
    require_vocabulary,
)
from ..progress import progress as long_stage
from ..prompts.coherence import incoherence
from ..prompts.phrases import REFUSAL_PREFIXES, PhraseSet
from ..prompts.prompt_set import PromptSet
from ..prompts.templates import Template
from ..refusal import (
    REDUCTIONS,
    TOLERANCE,
    Bounded,
    UsualBeginnings,
    bound_phrases,
    chosen_reductions,
    phrase_ids,
    reduce_phrases,
    score_phrases,
)
from .encoding import Encoded, Texts, as_encoded, evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class RefusalMeasurement:
    """The refusal of n prompts.

    Attributes:
        prompts: what was measured on.
        log_probabilities: log P_refuse, the natural logarithm, `[n]` float64, for each (phrase set,
            reduction); `literal` may exceed 0.
        upper: what each of them is at most, with the phrases that were not run to their end
            (`refusal.bounded`); `log_probabilities` themselves where all were.
        answers: the model's own answers, if they were generated; never written to disk.
        refuses: whether each answer begins with a refusal, if they were generated; None for one
            whose reasoning never ends. By the filter of the first set of phrases.
        refuses_by: the same by the name of each set of phrases, where there are several.
        settings: everything that the numbers depend on.
    """

    prompts: PromptSet
    log_probabilities: dict[tuple[str, str], Tensor]
    answers: tuple[str, ...] | None = None
    refuses: tuple[bool | None, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    upper: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    refuses_by: dict[str, tuple[bool | None, ...]] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """Return a row per prompt and reduction: those of `Trajectory.refusal` without `step`."""
        about = self.prompts.frame()[["prompt", "group", "text"]]
        unknown = self.refuses or [None] * len(self.prompts)
        said = self.answers or [None] * len(self.prompts)
        flaws = [None if text is None else incoherence(text) is not None for text in said]
        tables = [
            about.assign(
                phrase_set=phrase_set,
                reduction=reduction,
                log_probability=values.numpy(),
                probability=np.exp(values.numpy()),
                upper=self.upper.get((phrase_set, reduction), values).numpy(),
                refuses=pd.array(self.refuses_by.get(phrase_set, unknown), dtype="boolean"),
                incoherent=pd.array(flaws, dtype="boolean"),
            )
            for (phrase_set, reduction), values in self.log_probabilities.items()
        ]
        return pd.concat(tables, ignore_index=True)

    def group_means(self) -> pd.DataFrame:
        """Return means over prompts, a row for each group, phrase set and reduction.

        Returns:
            `group, phrase_set, reduction, probability, refusal_rate, incoherent_rate`; the last is
            the share of answers that say nothing (`prompts.coherence`), which no compliance is.
        """
        keys = ["group", "phrase_set", "reduction"]
        columns = ["probability", "refuses", "incoherent"]
        means = self.frame().groupby(keys, sort=False)[columns].mean()
        rates = {"refuses": "refusal_rate", "incoherent": "incoherent_rate"}
        return means.rename(columns=rates).reset_index()

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Return the Axes with every prompt's probability by group, for the first reduction."""
        from .drawing import draw_probabilities

        return draw_probabilities(self.frame().iloc[: len(self.prompts)], ax)

    def __repr__(self) -> str:
        return f"RefusalMeasurement({self.prompts.describe()})"

    def _repr_html_(self) -> str:
        first = self.frame().iloc[: len(self.prompts)]
        likely = first.nlargest(5, "probability")[["group", "text", "probability", "refuses"]]
        return (
            paragraph(f"Refusals of {self.prompts.describe()}, means over prompts")
            + table(self.group_means(), index=False)
            + paragraph("The prompts most probably refused")
            + table(likely, index=False)
        )


def measure_refusal(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Texts | Encoded,
    *,
    phrases: str | Sequence[str] | PhraseSet | Sequence[PhraseSet] = "paper31",
    apostrophes: str = "ascii",
    reductions: str | Sequence[str] = REDUCTIONS,
    generate: bool = True,
    max_new_tokens: int = 32,
    template: str | Template = "auto",
    max_length: int | None = None,
    logits_processor: Sequence[LogitsProcessor] = (),
    batch_size: int = 32,
    exact_phrases: bool = False,
    progress: bool = False,
) -> RefusalMeasurement:
    """Measure how probably a model's answer begins with a refusal (A.5), and whether it does.

    Args:
        model: any causal language model, in memory.
        tokenizer: its tokenizer.
        prompts: what to measure on.
        phrases: the name of a phrase set, phrases, or one or several `PhraseSet`s, each of which
            has rows of its own under its name, and its own filter for the answers.
        apostrophes: `ascii`, `curly` or `both`, for a named set.
        reductions: `literal` sums over all phrases as the paper does; `prefix_free` counts a phrase
            that begins with another one once. One, or both.
        generate: whether to let the model answer, greedily.
        max_new_tokens: of an answer; a refusal shows in the first words.
        template: how prompts become tokens.
        max_length: longer prompts lose the end of their text.
        logits_processor: a decoding method's, as `mitigations.applied` yields it.
        batch_size: prompts at a time.
        exact_phrases: run every phrase to its end; by default those are not that cannot add more
            than `refusal.TOLERANCE` to log P_refuse, and `upper` says what they may add.
        progress: show a bar on stderr.

    Returns:
        Natural logarithms of probabilities, and answers if asked for. A model or prompt that cannot
        be measured, with the tokens of the longest phrase or of an answer behind it; an unknown
        phrase set or reduction; phrases of which the vocabulary can write none; two phrase sets of
        one name; and a `max_new_tokens` or `batch_size` less than 1 are each a `UserError`.
    """
    selected_reductions = chosen_reductions(reductions)
    if generate:
        count("max_new_tokens", max_new_tokens)
    encoded = as_encoded(tokenizer, prompts, template, max_length)
    sets = _phrase_sets(phrases, apostrophes)
    ends = [phrase_ids(tokenizer, list(each.phrases), encoded.template) for each in sets]
    ids = list(encoded.input_ids)
    how = _Scoring(
        tokenizer,
        ends,
        selected_reductions,
        0.0 if exact_phrases else TOLERANCE,
        max_new_tokens if generate else 0,
        encoded.template.stop_ids(tokenizer),
        encoded.template.stop_texts(tokenizer),
        batch_size,
        progress,
    )
    with evaluating(model), torch.no_grad():
        longest = max(len(phrase) for each in ends for phrase in each)
        new_tokens = max(longest, how.max_new_tokens) - 1
        require_measurable(model, ids, new_tokens=longest - 1)
        if generate:
            require_measurable(model, ids, new_tokens=max_new_tokens)
        if logits_processor or not usable(model, ids, new_tokens):
            scores, answers = how.without_cache(model, ids, logits_processor)
        else:
            scores, answers = how.with_cache(model, ids)

    named = isinstance(phrases, str)
    settings = {
        "phrases": phrases if named else _recorded(phrases, sets),
        "apostrophes": apostrophes if named else None,
        **encoded.record,
        "max_new_tokens": max_new_tokens if generate else None,
        "exact_phrases": exact_phrases,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    said = {} if answers is None else {s.name: tuple(map(s.refuses, answers)) for s in sets}
    return RefusalMeasurement(
        encoded.prompts,
        _sums([each.lower for each in scores], sets, ends, selected_reductions),
        None if answers is None else tuple(answers),
        next(iter(said.values()), None),
        settings,
        _sums([each.upper for each in scores], sets, ends, selected_reductions),
        said,
    )


def _phrase_sets(
    phrases: str | Sequence[str] | PhraseSet | Sequence[PhraseSet], apostrophes: str
) -> tuple[PhraseSet, ...]:
    """Return the sets of phrases that are asked for; phrases alone are one called `given`.

    Raises:
        UserError: if two have one name.
    """
    if isinstance(phrases, str):
        return (PhraseSet.named(phrases, apostrophes=apostrophes),)
    if isinstance(phrases, PhraseSet):
        return (phrases,)
    sets = tuple(each for each in phrases if isinstance(each, PhraseSet))
    if len(sets) < len(phrases) or not sets:
        require(not sets, "phrases= takes texts, or sets of phrases: give the one or the other")
        texts: Any = tuple(phrases)
        return (PhraseSet("given", texts, REFUSAL_PREFIXES),)
    if len({each.name for each in sets}) < len(sets):
        raise UserError(f"two sets of phrases have one name: {[each.name for each in sets]}")
    return sets


def _recorded(phrases: Any, sets: Sequence[PhraseSet]) -> list[Any]:
    """Return the record of phrases that are no name: of sets their labels, else the texts."""
    given = isinstance(phrases, PhraseSet) or isinstance(phrases[0], PhraseSet)
    return [each.label for each in sets] if given else list(phrases)


def _sums(
    found: Sequence[Tensor],
    sets: Sequence[PhraseSet],
    ends: Sequence[Sequence[tuple[int, ...]]],
    selected_reductions: Sequence[str],
) -> dict[tuple[str, str], Tensor]:
    """Return log P_refuse for each set and reduction, of the phrases' log-probabilities."""
    return {
        (each.name, how): reduce_phrases(values, own, how).cpu()
        for each, values, own in zip(sets, found, ends, strict=True)
        for how in selected_reductions
    }


@dataclass(frozen=True)
class _Scoring:
    """How phrases are scored and answers generated."""

    tokenizer: "PreTrainedTokenizerBase"
    phrases: Sequence[Sequence[tuple[int, ...]]]
    reductions: tuple[str, ...]
    tolerance: float
    max_new_tokens: int
    stop_ids: Sequence[int]
    stop_texts: Sequence[str]
    batch_size: int
    progress: bool

    def without_cache(
        self, model: nn.Module, ids: list[Any], processors: Sequence[LogitsProcessor]
    ) -> tuple[list[Bounded], list[str] | None]:
        """Return each set's scores, all exact, and the answers, from passes of their own."""
        scores = [
            score_phrases(
                model,
                ids,
                each,
                logits_processor=processors,
                batch_size=self.batch_size,
                progress=self.progress,
            )
            for each in self.phrases
        ]
        exact = [Bounded(each, each) for each in scores]
        if not self.max_new_tokens:
            return exact, None
        answers = generate_answers(
            model,
            self.tokenizer,
            ids,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            stop_ids=self.stop_ids,
            stop_texts=self.stop_texts,
            logits_processor=processors,
            progress=self.progress,
        )
        return exact, answers

    def with_cache(
        self, model: nn.Module, ids: list[Any]
    ) -> tuple[list[Bounded], list[str] | None]:
        """Return the same, within the tolerance, from one pass over each prompt."""
        tokens = [t for each in self.phrases for phrase in each for t in phrase]
        require_vocabulary(model, tokens, "a refusal phrase")
        found = [
            Bounded(*(torch.zeros(len(ids), len(each), dtype=torch.float64) for _ in range(2)))
            for each in self.phrases
        ]
        usual = [UsualBeginnings() for _ in self.phrases]
        answers = [""] * len(ids)
        with long_stage(
            total=len(ids), disable=not self.progress, desc="refusals", unit="prompt", leave=False
        ) as bar:
            for rows, kept in batches(model, ids, count("batch_size", self.batch_size)):
                for each, scores, seen in zip(self.phrases, found, usual, strict=True):
                    bounds = bound_phrases(
                        kept, each, self.reductions, tolerance=self.tolerance, rows=rows, usual=seen
                    )
                    scores.lower[rows], scores.upper[rows] = bounds.lower, bounds.upper
                if self.max_new_tokens:
                    new = answer_cached(
                        kept,
                        self.tokenizer,
                        max_new_tokens=self.max_new_tokens,
                        stop_ids=self.stop_ids,
                        stop_texts=self.stop_texts,
                        rows=rows,
                    )
                    for row, answer in zip(rows, new, strict=True):
                        answers[row] = answer.text
                bar.update(len(rows))
        return found, answers if self.max_new_tokens else None
