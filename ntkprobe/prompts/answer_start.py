"""The position of a template's first answer token, after any block of reasoning.

A model has to be measured and trained at the same position. Generation prompts and conversations
with an answer differ in some templates: one opens `<think>` only in the generation prompt
(DeepSeek-R1, QwQ); another writes an empty block, or a channel, only before a given answer
(gpt-oss). The position is determined by rendering a prompt in both ways, and the text that the
generation prompt lacks is appended to it. This is done for every prompt, since the user or the
system can switch reasoning in some templates (`/think` and `/no_think` of SmolLM3 and Nemotron).
"""

import re
from dataclasses import dataclass
from itertools import takewhile

from ..errors import UserError, one_line
from . import reasoning


@dataclass(frozen=True)
class AnswerStart:
    """The text of a template between the user's text and an answer, and after the answer.

    Attributes:
        after_text: the template's text between the user's text and the bridge.
        bridge: appended to the generation prompt; empty for most templates.
        leading_space: the template's space before an answer, which the model has to generate.
        after_answer: the template's text after an answer; None if it renders no answers.
        has_reasoning: whether the prompt or the bridge has a block of reasoning.
        change: a sentence about what was appended to a prompt; None if nothing was.
    """

    after_text: str = ""
    bridge: str = ""
    leading_space: str = ""
    after_answer: str | None = None
    has_reasoning: bool = False
    change: str | None = None

    def rendered_answer(self, whole: str, answer: str, name: str) -> str:
        """Return an answer as the template renders it: some trim it, or remove its reasoning.

        Args:
            whole: the rendered conversation.
            answer: the answer's text, as given.
            name: of the template, for messages.

        Returns:
            The answer's text, without the text after it.

        Raises:
            UserError: if the answer is not in the conversation, or changed.
        """
        alone = reasoning.answered(answer)
        after = [] if alone is None or alone == answer else [alone, alone.strip()]
        full = [answer, answer.rstrip(), answer.lstrip(), answer.strip()]
        if self.after_answer is not None and whole.endswith(self.after_answer):
            body = whole.removesuffix(self.after_answer)
            for text in (*after, *full) if self.has_reasoning else (*full, *after):
                if text and body.endswith(text):
                    return text
        raise UserError(f"the template {name!r} does not render the assistant's answer as it is")


def text_after_prompt(before: str, text: str, usual: str) -> str:
    """Return the text of a rendered prompt after the user's text.

    The user's text may occur several times (`assistant` is a prompt like any other). The occurrence
    followed by the longest part of the usual text is taken; if the template changes the user's
    text, every position is tried.

    Args:
        before: a rendered prompt, with generation prompt.
        text: the user's text.
        usual: the text after another prompt's text.
    """
    for shown in (text, text.strip()):
        if before.endswith(shown + usual):
            return usual
        found = re.finditer(f"(?={re.escape(shown)})", before)
        if ends := [place.start() + len(shown) for place in found]:
            break
    else:
        ends = list(range(len(before) + 1))
    best = max(
        ends, key=lambda end: (_common_prefix_length(before[end : end + len(usual)], usual), end)
    )
    return before[best:]


def find_answer_start(
    before: str, whole: str, after_text: str, answer: str, name: str
) -> AnswerStart:
    """Return the position of a template's answers, as the text around them.

    Args:
        before: a rendered prompt, with generation prompt.
        whole: the same prompt with an answer; empty if the template cannot render it.
        after_text: the prompt's text after the user's text.
        answer: the answer's text.
        name: of the template, for messages.

    Returns:
        The text to append to the prompt, and the text around an answer.

    Raises:
        UserError: if the two differ before the answer by more than reasoning.
    """  # ruff: ignore[docstring-extraneous-exception]
    head, shown, after_answer = whole.rpartition(answer)
    bridge, leading_space = "", ""
    if shown and head.startswith(before):
        rest = head[len(before) :]
        bridge = rest.rstrip(" ")  # these may merge with the answer's first word
        leading_space = rest[len(bridge) :]
    elif shown:
        _require_reasoning(before, head, after_text, name)
    closed = reasoning.closing(after_text + bridge)
    return AnswerStart(
        after_text,
        bridge + closed,
        "" if closed else leading_space,
        after_answer if shown else None,
        reasoning.has_marks(after_text + bridge),
        _describe_change(name, bridge, closed),
    )


def _require_reasoning(before: str, head: str, after_text: str, name: str) -> None:
    """Do nothing if a generation prompt has only reasoning or blanks that a pair lacks.

    Raises:
        UserError: if a pair does not begin with the generation prompt.
    """
    more = before[_common_prefix_length(before, head) :]
    if len(more) <= len(after_text) and (not more.strip() or reasoning.has_marks(after_text)):
        return
    raise UserError(
        f"the template {name!r} ends a prompt with {one_line(more)[-60:]!r}, which a conversation "
        "with an answer does not have there: what is measured and what is learnt would be at "
        "different places; use raw, or a template whose conversations begin with its prompts"
    )


def _common_prefix_length(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], pairs))


def _describe_change(name: str, bridge: str, closed: str) -> str | None:
    """Return a sentence about what is appended to a prompt, `None` if nothing is."""
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
