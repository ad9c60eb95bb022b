"""Prompts in a batch of token ids: rows without padding, and a system message put into them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from ..errors import UserError
from ..prompts.rendering import shipped_templates
from ..prompts.special_tokens import added_tokens
from ..prompts.templates import Template, resolve_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACES = ("system", "user")
"""Where a message goes: into its own role, or before the user's first text with a blank line."""

_PROBES = ("Hello", "Why?", "I do", "do it", "(I)")  # texts that begin differently

Rows = list[list[int]]
"""Token ids of each row, without padding."""


def real_rows(
    tokenizer: "PreTrainedTokenizerBase",
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Int[Tensor, "rows columns"] | None = None,
) -> Rows:
    """Return the rows of a batch that is padded on the left, without their padding.

    Args:
        tokenizer: its padding token (EOS where it has none) is taken for padding if there is no
            mask. What every row begins with is no padding: the longest row has none, so that a BOS
            which is the padding token, too, is kept.
        input_ids: prompts.
        attention_mask: 1 for tokens, 0 for padding, of the prompts' shape.

    Returns:
        The rows' ids.

    Raises:
        UserError: if the mask is another batch's.
    """
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            raise UserError(
                f"begin() got a mask {tuple(attention_mask.shape)} for prompts "
                f"{tuple(input_ids.shape)}: call it before each sequence"
            )
        pairs = zip(input_ids, attention_mask.to(input_ids.device), strict=True)
        return [ids[mask.bool()].tolist() for ids, mask in pairs]
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    padding = next((token for token in known if token is not None), None)
    if padding is None:
        return input_ids.tolist()
    # Padding is where nothing but the padding token has come so far.
    leading = (input_ids == padding).long().cumprod(-1).sum(-1)
    gaps = (leading - leading.min()).tolist()
    return [ids[gap:] for ids, gap in zip(input_ids.tolist(), gaps, strict=True)]


@dataclass(frozen=True)
class SystemMessage:
    """The change of a prompt's ids by a system message: its first ids are replaced.

    All ids behind them (earlier turns, the user's text, the beginning of an answer) are the same in
    both branches.

    Attributes:
        template: the name of the template that the prompts were written with.
        opening: ids that every prompt of the template begins with.
        old: ids to be replaced, a beginning of the prompts.
        new: ids that replace them.
    """

    template: str
    opening: tuple[int, ...]
    old: tuple[int, ...]
    new: tuple[int, ...]

    @classmethod
    def of(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        message: str,
        spec: str = "auto",
        place: str = "system",
    ) -> "SystemMessage":
        """Return the change that a system message makes under a template.

        A template without a system role (it fails, or drops the message) gets the message at the
        beginning of the user's turn, with a blank line behind it, as AdaCD has it for Gemma. So
        does a raw prompt, behind its BOS.

        Args:
            tokenizer: the model's.
            message: what the system says.
            spec: the template that the prompts are written with, as `resolve_template` takes it.
            place: one of `PLACES`; `user` puts the message there whatever the template can do.

        Returns:
            What to replace, and by what.
        """
        template = resolve_template(tokenizer, spec)
        before = template.opening(tokenizer)
        after = (
            template.opening(tokenizer, message)
            if place == "system"
            else _user_opening(tokenizer, template, message)
        )
        same = 0
        while same < min(len(before), len(after)) and before[-1 - same] == after[-1 - same]:
            same += 1
        # The user's first letters may have merged with the last token; special ones never merge.
        whole = not before or before[-1] in added_tokens(tokenizer)
        return cls(
            template.name,
            tuple(before if whole else before[:-1]),
            tuple(before[: len(before) - same]),
            tuple(after[: len(after) - same]),
        )

    def put_into(self, rows: Sequence[Sequence[int]]) -> Rows:
        """Return prompts with the message in them.

        Args:
            rows: prompts' ids, without padding.

        Returns:
            The prompts' ids.

        Raises:
            UserError: if one does not begin as the template does.
        """
        for number, row in enumerate(rows):
            if any(tuple(row[: len(b)]) != b for b in (self.opening, self.old)):
                raise UserError(
                    f"prompt {number} of the batch does not begin as the template "
                    f"{self.template!r} does: set the mitigation's template to the prompts' own "
                    f"(chat, raw, one of {list(shipped_templates())}, or a Jinja file)"
                )
        return [[*self.new, *row[len(self.old) :]] for row in rows]


def _user_opening(
    tokenizer: "PreTrainedTokenizerBase", template: Template, message: str
) -> list[int]:
    """Return the ids that prompts begin with whose user's text begins with a message."""
    texts = [template.encode(tokenizer, f"{message}\n\n{probe}") for probe in _PROBES]
    same = takewhile(lambda ids: len(set(ids)) == 1, zip(*texts, strict=False))
    return [ids[0] for ids in same]
