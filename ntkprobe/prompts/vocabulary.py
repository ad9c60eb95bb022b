"""Whether the ids of two tokenizers mean the same tokens."""

from typing import TYPE_CHECKING

from .special_tokens import added_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
