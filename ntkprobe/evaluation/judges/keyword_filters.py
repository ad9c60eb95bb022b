"""What keyword filters share: a phrase that was found makes a refusal, and is its evidence."""

from collections.abc import Callable, Sequence

from ..verdicts import COMPLIANCE, REFUSAL, Item, Verdict


def filter_verdicts(items: Sequence[Item], found: Callable[[str], str | None]) -> list[Verdict]:
    """Return what a filter says.

    Args:
        items: answers.
        found: returns the phrase that makes an answer a refusal, or None.

    Returns:
        One verdict an item; an empty answer is undetermined, since silence is neither, and so is
        one whose reasoning never ends.
    """
    return [_verdict(item, found) for item in items]


def _verdict(item: Item, found: Callable[[str], str | None]) -> Verdict:
    """Return what a filter says about one answer."""
    if (none := item.undetermined) is not None:
        return none
    phrase = found(item.shown.answer)
    return Verdict(item.id, COMPLIANCE if phrase is None else REFUSAL, phrase or "")
