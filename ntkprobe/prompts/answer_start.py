"""Where a template's answer begins: the first answered token, behind any block of reasoning.

What a model is measured at and what it learns have to be the same place. Templates differ between
the two: one opens `<think>` where it generates and has none where an answer is given (DeepSeek-R1,
QwQ); another puts an empty block, or a channel, only where an answer is given (gpt-oss). The place
is found by rendering a prompt in both ways; what it lacks to reach the place is put behind it. That
is done for every prompt, since the user or the system can switch reasoning in some templates
(`/think` and `/no_think` of SmolLM3 and Nemotron).
"""

import re
from dataclasses import dataclass
from itertools import takewhile

from ..errors import UserError, one_line
from . import reasoning


@dataclass(frozen=True)
class AnswerStart:
    """What stands between a template's prompt and an answer, and behind the answer.

    Attributes:
        said: what the template puts between the user's text and the bridge.
        bridge: is put behind the generation prompt; empty for most templates.
        lead: the space that the template puts before an answer, which the model has to write.
        tail: what the template puts behind an answer; None if it shows no answers.
        reasons: whether the prompt or the bridge holds a block of reasoning.
        remark: what was done to a prompt, in words; None where nothing was.
    """

    said: str = ""
    bridge: str = ""
    lead: str = ""
    tail: str | None = None
    reasons: bool = False
    remark: str | None = None

    def written(self, whole: str, answer: str, name: str) -> str:
        """Return an answer as the template writes it.

        A template trims answers, or takes reasoning out of them; then that is what is written.

        Args:
            whole: the rendered conversation.
            answer: the text that it was given.
            name: of the template, for messages.

        Returns:
            The answer's text, without what comes behind it.

        Raises:
            UserError: if the answer is not in the conversation, or changed.
        """
        alone = reasoning.answered(answer)
        after = [] if alone is None or alone == answer else [alone, alone.strip()]
        full = [answer, answer.rstrip(), answer.lstrip(), answer.strip()]
        if self.tail is not None and whole.endswith(self.tail):
            body = whole.removesuffix(self.tail)
            for text in (*after, *full) if self.reasons else (*full, *after):
                if text and body.endswith(text):
                    return text
        raise UserError(f"the template {name!r} does not render the assistant's answer as it is")


def behind_text(before: str, text: str, usual: str) -> str:
    """Return what a rendered prompt has behind the user's text.

    The text may stand in several places (`assistant` is a prompt like any other). The one counts
    that is followed by the most of what usually follows; all places count for a template that
    changes the text.

    Args:
        before: a rendered prompt, with generation prompt.
        text: what the user says.
        usual: what stands behind another prompt's text.
    """
    for shown in (text, text.strip()):
        if before.endswith(shown + usual):
            return usual
        found = re.finditer(f"(?={re.escape(shown)})", before)
        if ends := [place.start() + len(shown) for place in found]:
            break
    else:
        ends = list(range(len(before) + 1))
    best = max(ends, key=lambda end: (_shared(before[end : end + len(usual)], usual), end))
    return before[best:]


def find_answer_start(before: str, whole: str, said: str, answer: str, name: str) -> AnswerStart:
    """Return where a template's answers begin.

    Args:
        before: a rendered prompt, with generation prompt.
        whole: the same prompt with an answer; empty for a template that fails there.
        said: what the prompt has behind the user's text.
        answer: the answer's text.
        name: of the template, for messages.

    Returns:
        What the prompt needs behind it, and what an answer has around it.

    Raises:
        UserError: if the two differ in front of the answer, and not by reasoning.
    """  # ruff: ignore[docstring-extraneous-exception]
    head, shown, tail = whole.rpartition(answer)
    bridge, lead = "", ""
    if shown and head.startswith(before):
        rest = head[len(before) :]
        bridge = rest.rstrip(" ")  # these may merge with the answer's first word
        lead = rest[len(bridge) :]
    elif shown:
        _require_reasoning(before, head, said, name)
    closed = reasoning.closing(said + bridge)
    return AnswerStart(
        said,
        bridge + closed,
        "" if closed else lead,
        tail if shown else None,
        reasoning.has_marks(said + bridge),
        _remark(name, bridge, closed),
    )


def _require_reasoning(before: str, head: str, said: str, name: str) -> None:
    """Do nothing if a generation prompt has only reasoning, or blanks, more than a pair.

    Raises:
        UserError: if a pair does not begin with the generation prompt.
    """
    more = before[_shared(before, head) :]
    if len(more) <= len(said) and (not more.strip() or reasoning.has_marks(said)):
        return
    raise UserError(
        f"the template {name!r} ends a prompt with {one_line(more)[-60:]!r}, which a conversation "
        "with an answer does not have there: what is measured and what is learnt would be at "
        "different places; use raw, or a template whose conversations begin with its prompts"
    )


def _shared(one: str, other: str) -> int:
    """Return how many letters two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], pairs))


def _remark(name: str, bridge: str, closed: str) -> str | None:
    """Return what is put behind a prompt, in words."""
    if closed:
        return (
            f"the template {name!r} opens a block of reasoning: it is closed, with {closed!r}, so "
            "that the first answered token is what is measured and learnt"
        )
    if bridge:
        return (
            f"the template {name!r} puts {bridge!r} before an answer and not behind a prompt: it "
            "is put there, so that the first answered token is what is measured and learnt"
        )
    return None
