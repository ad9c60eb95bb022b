"""A second branch of the same model, under a system message."""

from typing import TYPE_CHECKING, Any

from ._branch import Branch
from ._processor import BranchProcessor, Combine, stateless
from ._prompts import Rows, SystemMessage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompted_processor(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    system: str,
    template: str,
    combine: Combine,
    steps: int | None = None,
    place: str = "system",
) -> BranchProcessor:
    """Return a processor that combines each token's scores with those under a system message.

    Args:
        model: of both branches, with its adapter if it has one.
        tokenizer: its tokenizer.
        system: the message.
        template: what the prompts are written with.
        combine: the method's formula.
        steps: how many tokens it changes; None for all.
        place: of the message, one of `_prompts.PLACES`.
    """
    message = SystemMessage.of(tokenizer, system, template, place)

    def open_branch(rows: Rows) -> Branch:
        return Branch(model, message.put_into(rows))

    return BranchProcessor(tokenizer, open_branch, stateless(combine), steps)
