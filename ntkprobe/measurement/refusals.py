"""The probability that one model refuses each prompt, and whether its own answer does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..chat import Template
from ..phrases import is_refusal, phrase_set
from ..prompts import PromptSet
from .encoding import Encoded, Texts, as_encoded, evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedTokenizerBase

REDUCTIONS = ("literal", "prefix_free")


@dataclass(frozen=True, eq=False)
class RefusalMeasurement:
    """The refusal of n prompts.

    Attributes:
        prompts: what was measured on.
        log_probabilities: log P_refuse, `[n]` float64, for each (phrase set, reduction).
        answers: the model's own answers, if they were generated; never written to disk.
        refuses: whether each answer begins with a refusal, if they were generated.
        settings: everything that the numbers depend on.
    """

    prompts: PromptSet
    log_probabilities: dict[tuple[str, str], Tensor]
    answers: tuple[str, ...] | None = None
    refuses: tuple[bool, ...] | None = None
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
        return (
            f"<p>Refusals, means over prompts</p>{self.group_means().round(4).to_html(escape=True)}"
        )


def measure_refusal(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Texts | Encoded,
    *,
    phrases: str | Sequence[str] = "paper31",
    apostrophes: str = "ascii",
    reductions: Sequence[str] = REDUCTIONS,
    generate: bool = True,
    max_new_tokens: int = 32,
    template: str | Template = "auto",
    max_length: int | None = None,
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
            that begins with another one once.
        generate: whether to let the model answer, greedily.
        max_new_tokens: of an answer; a refusal shows in the first words.
        template: how prompts become tokens.
        max_length: longer prompts lose the end of their text.
        batch_size: prompts at a time.

    Returns:
        Log-probabilities, and answers if asked for.
    """
    from ..generation import generate_answers
    from ..refusal import refusal_log_probabilities

    encoded = as_encoded(tokenizer, prompts, template, max_length)
    texts = phrase_set(phrases, apostrophes=apostrophes) if isinstance(phrases, str) else phrases
    label = phrases if isinstance(phrases, str) else "given"
    ids = [torch.tensor(row) for row in encoded.input_ids]
    ends = encoded.template.encode_phrases(tokenizer, texts)
    with evaluating(model):
        log_probabilities = {
            (label, reduction): refusal_log_probabilities(
                model, tokenizer, ids, ends, reduction=reduction, batch_size=batch_size
            )
            for reduction in reductions
        }
        answers = (
            generate_answers(
                model, tokenizer, ids, max_new_tokens=max_new_tokens, batch_size=batch_size
            )
            if generate
            else None
        )
    settings = {
        "phrases": label,
        "apostrophes": apostrophes,
        "template": encoded.template.name,
        "max_new_tokens": max_new_tokens if generate else None,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    refuses = None if answers is None else tuple(is_refusal(answer) for answer in answers)
    kept = None if answers is None else tuple(answers)
    return RefusalMeasurement(encoded.prompts, log_probabilities, kept, refuses, settings)
