"""The probability that one model refuses each prompt, and whether its own answer does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from ..jupyter import paragraph, table
from ..models.generation import generate_answers
from ..models.validation import count
from ..prompts.phrases import is_refusal, phrase_set
from ..prompts.prompt_set import PromptSet
from ..prompts.templates import Template
from ..refusal import REDUCTIONS, chosen_reductions, phrase_ids, reduce_phrases, score_phrases
from .encoding import Encoded, Texts, as_encoded, evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class RefusalMeasurement:
    """The refusal of n prompts.

    Attributes:
        prompts: what was measured on.
        log_probabilities: log P_refuse, `[n]` float64, for each (phrase set, reduction).
        answers: the model's own answers, if they were generated; never written to disk.
        refuses: whether each answer begins with a refusal, if they were generated; None for one
            whose reasoning never ends.
        settings: everything that the numbers depend on.
    """

    prompts: PromptSet
    log_probabilities: dict[tuple[str, str], Tensor]
    answers: tuple[str, ...] | None = None
    refuses: tuple[bool | None, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """Return a row per prompt and reduction: those of `Trajectory.refusal` without `step`."""
        about = self.prompts.frame()[["prompt", "group", "text"]]
        refuses = pd.array(self.refuses or [None] * len(self.prompts), dtype="boolean")
        tables = [
            about.assign(
                phrase_set=phrase_set,
                reduction=reduction,
                log_probability=values.numpy(),
                probability=np.exp(values.numpy()),
                refuses=refuses,
            )
            for (phrase_set, reduction), values in self.log_probabilities.items()
        ]
        return pd.concat(tables, ignore_index=True)

    def group_means(self) -> pd.DataFrame:
        """Return means over prompts: `group, phrase_set, reduction, probability, refusal_rate`."""
        keys = ["group", "phrase_set", "reduction"]
        means = self.frame().groupby(keys, sort=False)[["probability", "refuses"]].mean()
        return means.rename(columns={"refuses": "refusal_rate"}).reset_index()

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
    phrases: str | Sequence[str] = "paper31",
    apostrophes: str = "ascii",
    reductions: str | Sequence[str] = REDUCTIONS,
    generate: bool = True,
    max_new_tokens: int = 32,
    template: str | Template = "auto",
    max_length: int | None = None,
    logits_processor: Sequence[LogitsProcessor] = (),
    batch_size: int = 32,
) -> RefusalMeasurement:
    """Measure how probably a model's answer begins with a refusal (A.5), and whether it does.

    Args:
        model: any causal language model, in memory.
        tokenizer: its tokenizer.
        prompts: what to measure on.
        phrases: the name of a phrase set, or phrases.
        apostrophes: `ascii`, `curly` or `both`, for a named set.
        reductions: `literal` sums over all phrases as the paper does; `prefix_free` counts a phrase
            that begins with another one once. One, or both.
        generate: whether to let the model answer, greedily.
        max_new_tokens: of an answer; a refusal shows in the first words.
        template: how prompts become tokens.
        max_length: longer prompts lose the end of their text.
        logits_processor: a decoding method's, as `mitigations.applied` yields it.
        batch_size: prompts at a time.

    Returns:
        Log-probabilities, and answers if asked for.
    """
    hows = chosen_reductions(reductions)
    if generate:
        count("max_new_tokens", max_new_tokens)
    encoded = as_encoded(tokenizer, prompts, template, max_length)
    named = isinstance(phrases, str)
    texts = phrase_set(phrases, apostrophes=apostrophes) if isinstance(phrases, str) else phrases
    label = phrases if isinstance(phrases, str) else "given"
    ends = phrase_ids(tokenizer, list(texts), encoded.template)
    ids = list(encoded.input_ids)
    answers: Sequence[str] | None = None
    with evaluating(model), torch.no_grad():
        scores = score_phrases(
            model, ids, ends, logits_processor=logits_processor, batch_size=batch_size
        )
        if generate:
            answers = generate_answers(
                model,
                tokenizer,
                ids,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                stop_ids=encoded.template.stop_ids(tokenizer),
                logits_processor=logits_processor,
            )
    settings = {
        "phrases": label if named else list(texts),
        "apostrophes": apostrophes if named else None,
        **encoded.record,
        "max_new_tokens": max_new_tokens if generate else None,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    return RefusalMeasurement(
        encoded.prompts,
        {(label, how): reduce_phrases(scores, ends, how).cpu() for how in hows},
        None if answers is None else tuple(answers),
        None if answers is None else tuple(map(is_refusal, answers)),
        settings,
    )
