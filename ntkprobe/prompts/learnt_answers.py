"""A prompt with an answer as tokens, and where what is learnt of the answer begins."""

from itertools import takewhile
from typing import TYPE_CHECKING

from .prompt_set import behind
from .templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_learnt(
    template: Template,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    response: str,
    prefill: str = "",
    system: str | None = None,
) -> tuple[list[int], int, int]:
    """Return the ids of a pair, where its answer starts, and where what is learnt of it does.

    Between the two stands the prefill. A token that begins in it and ends in the refusal is learnt.

    Args:
        template: resolved.
        tokenizer: the model's.
        prompt: what the user says.
        response: what is learnt.
        prefill: what the answer begins with before that, itself not learnt.
        system: a system message; None leaves the template's own, if any.
    """
    ids, answer = template.encode_pair(tokenizer, prompt, behind(prefill, response), system=system)
    start = answer.index(True)
    if not prefill:
        return ids, start, start
    alone, _ = template.encode_pair(tokenizer, prompt, prefill, system=system)
    shared = takewhile(lambda two: two[0] == two[1], zip(ids, alone[:-1], strict=False))
    return ids, start, max(start, sum(1 for _ in shared))
