"""Prompts as token ids, once for everything that is measured on them."""

import hashlib
import json
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import nn

from ..errors import MeasurementWarning, UserError, require
from ..models.validation import check_autocast, check_loaded
from ..models.wrappers import computing_plainly
from ..prompts.prompt_set import Prompt, PromptSet
from ..prompts.templates import Template, resolve_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = PromptSet | Iterable[Prompt | str]


@dataclass(frozen=True)
class Encoded:
    """Prompts and their tokens.

    Attributes:
        prompts: the prompts, in order.
        input_ids: each prompt's tokens, template and response prefix included.
        template: how they were made.
    """

    prompts: PromptSet
    input_ids: tuple[tuple[int, ...], ...]
    template: Template

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all token ids: another tokenizer or template gives another one."""
        return hashlib.sha256(json.dumps(self.input_ids).encode()).hexdigest()

    @property
    def record(self) -> dict[str, str]:
        """What a number depends on: the template's name, and the day that it prints, if any."""
        day = {"template_date": self.template.day} if self.template.day else {}
        return {"template": self.template.name, **day}

    def remarks(self, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
        """Return what a reader should know about where in the prompts is measured, a line each.

        Args:
            tokenizer: what they were encoded with.
        """
        about = self.template.remarks(tokenizer, (prompt.text for prompt in self.prompts))
        inside = sum(bool(prompt.response) for prompt in self.prompts)
        said = (
            f"{inside} prompts are measured inside their response, behind its text: leave the "
            "column response out to measure at the first answered token"
        )
        return [*about, said] if inside else about

    def take(self, rows: Iterable[int]) -> "Encoded":
        """Return the prompts of these rows."""
        chosen = list(rows)
        ids = tuple(self.input_ids[row] for row in chosen)
        return Encoded(self.prompts.take(chosen), ids, self.template)


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Texts,
    template: str | Template = "auto",
    max_length: int | None = None,
) -> Encoded:
    """Return the prompts with their tokens.

    Args:
        tokenizer: the model's.
        prompts: a `PromptSet`, or prompts; bare strings count as `normal`.
        template: `auto`, `chat`, `raw`, a file, or a resolved template.
        max_length: longer prompts lose the end of their text; None for no limit.

    Returns:
        Both, in the same order. What is no list of prompts, a template that is unknown, cannot be
        read or fails, an empty prompt, and a `max_length` that leaves no token for a prompt's text
        are each a `UserError`.
    """
    chosen = template if isinstance(template, Template) else resolve_template(tokenizer, template)
    whole = as_prompt_set(prompts)
    ids = (tuple(chosen.encode(tokenizer, prompt, max_length)) for prompt in whole)
    return Encoded(whole, tuple(ids), chosen)


def as_encoded(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: "Texts | Encoded",
    template: str | Template,
    max_length: int | None,
) -> Encoded:
    """Return prompts with their tokens, made now unless they come with them.

    What should be known about where they are measured is then an `errors.MeasurementWarning`.

    Args:
        tokenizer: the model's; not used for prompts that come with their tokens.
        prompts: prompts, with their tokens or without.
        template: as for `encode`.
        max_length: as for `encode`.

    Returns:
        The prompts with their tokens. A tokenizer of None, where it is needed, and what `encode`
        refuses are each a `UserError`.
    """
    if isinstance(prompts, Encoded):
        return prompts
    require(tokenizer is not None, "no tokenizer: give the model's, to make tokens of the prompts")
    encoded = encode(tokenizer, prompts, template, max_length)
    for remark in encoded.remarks(tokenizer):
        warnings.warn(remark, MeasurementWarning, stacklevel=3)
    return encoded


def as_prompt_set(prompts: Texts) -> PromptSet:
    """Return prompts as a set; bare strings count as `normal`.

    Raises:
        UserError: for one string, or what is neither text nor prompt.
    """
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, str | Prompt) or not isinstance(prompts, Iterable):
        raise UserError(f"prompts={prompts!r}: give a PromptSet or a list of texts, such as ['…']")
    each = list(prompts)
    for number, prompt in enumerate(each):
        if not isinstance(prompt, Prompt | str):
            raise UserError(f"prompt {number} is a {type(prompt).__name__}: give texts or Prompts")
    return PromptSet(tuple(p if isinstance(p, Prompt) else Prompt(p, "normal") for p in each))


@contextmanager
def evaluating(model: nn.Module) -> Generator[nn.Module, None, None]:
    """Hold a model in evaluation mode; afterwards every module is in the mode that it was in.

    Meanwhile it computes what its weights say, outside of the mixed precision of a trainer.

    Args:
        model: any module, such as one that is being trained; inside a wrapper, or under autocast,
            it is a `UserError`.

    Yields:
        The same model.
    """
    check_loaded(model)
    check_autocast(model)
    training = [module for module in model.modules() if module.training]
    try:
        with computing_plainly(model):
            yield model.eval()
    finally:
        for module in training:
            module.training = True
