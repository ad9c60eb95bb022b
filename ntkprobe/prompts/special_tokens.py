"""Special tokens of a tokenizer: BOS, end-of-turn tokens, and decoding without them.

Also whether two tokenizers mean the same by their ids, where added tokens make no difference.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from ..errors import UserError
from . import reasoning

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase


def added_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, "AddedToken"]:
    """Return the added tokens by id; empty for a tokenizer that does not list them."""
    return dict(getattr(tokenizer, "added_tokens_decoder", None) or {})


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the ids that are special: flagged so among the added tokens, or named (EOS and such).

    Llama-3's `<|eot_id|>`, Gemma's `<end_of_turn>` and Phi-3's `<|end|>` have the flag alone.
    """
    flagged = {i for i, token in added_tokens(tokenizer).items() if token.special}
    return flagged | set(tokenizer.all_special_ids)


def reply_ends(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the special ids that end a reply: all except those that mark its reasoning.

    EOS is among them in any case. `<|end|>` is none beside `<|channel|>`, where it ends a channel.
    """
    names = {i: token.content for i, token in added_tokens(tokenizer).items()}
    marks = _marks(set(names.values()))
    going_on = {i for i, name in names.items() if name in marks}
    return special_ids(tokenizer) - (going_on - {tokenizer.eos_token_id})


def _marks(written: set[str]) -> set[str]:
    """Return which of some tokens mark reasoning; those of channels do so beside `<|channel|>`."""
    channels = reasoning.CHANNEL_MARKS if "<|channel|>" in written else frozenset()
    return written & (reasoning.MARKS | channels)


def single_bos(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    """Return ids that begin with one BOS at most.

    Raises:
        UserError: if there are none.
    """
    bos = tokenizer.bos_token_id
    extra = sum(1 for _ in takewhile(lambda token: token == bos, ids)) - 1 if bos is not None else 0
    if not ids[max(extra, 0) :]:
        raise UserError("an empty prompt: the tokenizer makes no tokens of it")
    return ids[max(extra, 0) :]


def puts_bos_first(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the tokenizer itself puts BOS before a text."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("Hello")["input_ids"])[:1] == [bos]


def ended(tokenizer: "PreTrainedTokenizerBase", answer: list[int]) -> list[int]:
    """Return an answer's ids with the token that ends it: EOS, unless a special one is there.

    Args:
        tokenizer: tells which ids are special.
        answer: ids behind the prompt.

    Returns:
        Ids that end with the end-of-turn token.

    Raises:
        UserError: if there is neither an end-of-turn token nor EOS.
    """
    ending = special_ids(tokenizer) - {tokenizer.bos_token_id, tokenizer.unk_token_id}
    if answer[-1] in ending:
        return answer
    if tokenizer.eos_token_id is None:
        raise UserError("no token ends an answer: the tokenizer has no EOS, nor has the template")
    return [*answer, tokenizer.eos_token_id]


@dataclass(frozen=True)
class TurnEnd:
    """How a template ends an answer.

    Attributes:
        text: what it puts behind one, up to and with the token that ends the turn; None where no
            token does.
        stops: the ids at which an answer that is generated ends: that token, the first one behind
            an answer, and the first one before the user's next turn.
        next_turn: what begins the user's next turn, at which an answer ends where no token does;
            None where one does, or nothing is known.
    """

    text: str | None
    stops: tuple[int, ...]
    next_turn: str | None = None


def turn_end(tokenizer: "PreTrainedTokenizerBase", tail: str, between: str) -> TurnEnd:
    r"""Return how a template ends an answer.

    The end is the last added token that stands behind an answer whether or not the conversation
    goes on. Phi-3's `<|end|>\n<|endoftext|>` ends with `<|end|>`, since EOS ends the conversation;
    where both have none in common (gpt-oss: `<|return|>` and `<|end|>`), it is the first. Added
    tokens count whatever their flag, since the template wrote them.

    Args:
        tokenizer: the model's.
        tail: what follows the last answer of a conversation.
        between: what follows an answer, up to the user's next text; empty if that is not known.
    """
    both = zip(tail, between, strict=False)
    shared = tail[: sum(1 for _ in takewhile(lambda two: two[0] == two[1], both))]
    places = _added_tokens_in(tokenizer, tail)
    common = _added_tokens_in(tokenizer, shared)
    first = [found[:1] for found in (places, _added_tokens_in(tokenizer, between))]
    ending = common[-1:] or places[:1]
    stops = [token for place in (ending, *first) for _, token in place]
    turn = None if stops else (between.rstrip() or None)
    return TurnEnd(tail[: ending[0][0]] if ending else None, tuple(dict.fromkeys(stops)), turn)


def _added_tokens_in(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[tuple[int, int]]:
    """Return where each added token in a text ends, and its id, in order; blanks are none."""
    ids = {token.content: i for i, token in added_tokens(tokenizer).items()}
    ids |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    names = sorted((name for name in ids if name.strip(" ▁\t\r\n")), key=len, reverse=True)
    if not names:
        return []
    found = re.finditer("|".join(map(re.escape, names)), text)
    return [(place.end(), ids[place.group()]) for place in found]


def readable(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Return the text of an answer without special tokens, but with the marks of its reasoning.

    Without them nobody could tell where the reasoning ends and the answer begins.

    Args:
        tokenizer: the model's.
        ids: of the answer.
    """
    names = {i: token.content for i, token in added_tokens(tokenizer).items()}
    marks = _marks({names[i] for i in set(ids) & set(names)})
    if not marks:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))
    left_out = {i for i in special_ids(tokenizer) if names.get(i) not in marks}
    kept = [i for i in ids if i not in left_out]
    return str(tokenizer.decode(kept, skip_special_tokens=False))


def rendered_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the ids of a rendered text; the tokenizer adds no special tokens to the template's."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def continuation_ids(tokenizer: "PreTrainedTokenizerBase", before: str, answer: str) -> list[int]:
    """Return the ids of an answer that continues a rendered prompt."""
    before_ids, ids = rendered_ids(tokenizer, before), rendered_ids(tokenizer, before + answer)
    if ids[: len(before_ids)] == before_ids:
        return ids[len(before_ids) :]
    return rendered_ids(tokenizer, answer)  # the last token of the prompt would merge with it


def open_ended_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the ids of a text with the special tokens in front, and no EOS that was put behind.

    With a tokenizer that appends EOS, the position after the end would be measured.
    """
    ids, eos = list(tokenizer(text)["input_ids"]), tokenizer.eos_token_id
    closed = eos is not None and len(ids) > 1 and ids[-1] == eos
    added = closed and not text.endswith(str(tokenizer.eos_token))
    return ids[:-1] if added else ids


def vocabulary_difference(
    one: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase"
) -> str | None:
    """Return an example of an id that means another token; None where all mean the same.

    Args:
        one: a tokenizer.
        other: another one. Ids that only one of both has are no difference, nor are added tokens:
            post-training appends some, and gives names to reserved ones.

    Returns:
        Such as `token 17 is 'cat' there and 'dog' here`, about `one` and `other`.
    """
    first, second = ({i: text for text, i in t.get_vocab().items()} for t in (one, other))
    added = set(added_tokens(one)) | set(added_tokens(other))
    for i in sorted((first.keys() & second.keys()) - added):
        if first[i] != second[i]:
            return f"token {i} is {first[i]!r} there and {second[i]!r} here"
    return None
