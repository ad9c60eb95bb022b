"""Special tokens by the tokenizer's own flag, named or not: where a turn ends, what is left out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the ids that are special: flagged so among the added tokens, or named (EOS and such).

    Llama-3's `<|eot_id|>`, Gemma's `<end_of_turn>` and Phi-3's `<|end|>` have the flag alone.
    """
    flagged = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return flagged | set(tokenizer.all_special_ids)


def up_to_end_of_turn(tokenizer: "PreTrainedTokenizerBase", tail: str) -> str | None:
    r"""Return the beginning of what a template puts behind an answer, with the token that ends it.

    The first added token there is the end of the turn, whatever its flag: Phi-3's early tokenizers
    have `<|end|>` without it, and its template puts EOS behind it (`<|end|>\n<|endoftext|>`).

    Args:
        tokenizer: the model's.
        tail: what follows the answer's text.

    Returns:
        None where no added token is in it.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    added |= set(tokenizer.all_special_tokens)
    found = [(tail.find(token), -len(token)) for token in added if token.strip(" ▁\t\r\n")]
    place = min((two for two in found if two[0] >= 0), default=None)
    return None if place is None else tail[: place[0] - place[1]]


def readable(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Return the text of an answer without special tokens, but with the marks of its reasoning.

    Without them nobody could tell where the reasoning ends and the answer begins.

    Args:
        tokenizer: the model's.
        ids: of the answer.
    """
    names = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    written = {names[i] for i in set(ids) & set(names)}
    marks = written & reasoning.MARKS
    if "<|channel|>" in written:
        marks |= reasoning.CHANNEL_MARKS
    if not marks:
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    left_out = {i for i in special_ids(tokenizer) if names.get(i) not in marks}
    kept = [i for i in ids if i not in left_out]
    return str(tokenizer.decode(kept, skip_special_tokens=False))
