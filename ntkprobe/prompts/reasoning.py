"""Reasoning before an answer: how models mark it, how it is closed, and the answer after it.

The marks are those of DeepSeek-R1, QwQ, Qwen3, SmolLM3, Nemotron, GLM and Granite (`<think>`),
EXAONE (`<thought>`), Magistral (`[THINK]`), Seed-OSS, Kimi, Cohere, Gemma 4, Apriel and gpt-oss
(channels).
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """How a family of models marks its reasoning.

    Attributes:
        opening: the mark that begins it.
        end: the mark behind which the answer comes.
        inside: what an empty block has between the two.
        closing: what closes a block that has begun, and leads to the answer.
    """

    opening: str
    end: str
    inside: str
    closing: str

    @property
    def empty(self) -> str:
        """A block without any reasoning."""
        return f"{self.opening}{self.inside}{self.closing}"


def _on_lines(opening: str, end: str) -> Block:
    return Block(opening, end, "\n\n", f"{end}\n\n")


def _inline(opening: str, end: str) -> Block:
    return Block(opening, end, "", end)


_FINAL = "<|channel|>final<|message|>"
_ANALYSIS = "<|channel|>analysis"
_STEPS, _RESPONSE = "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"

BLOCKS = (
    _on_lines("<think>", "</think>"),
    _on_lines("<thinking>", "</thinking>"),
    _on_lines("<thought>", "</thought>"),
    _on_lines("<reasoning>", "</reasoning>"),
    _inline("[THINK]", "[/THINK]"),
    _inline("<seed:think>", "</seed:think>"),
    Block(
        "<seed:think><seed:cot_budget_reflect>",
        "</seed:think>",
        "The current thinking budget is 0, so I will directly start answering the question.",
        "</seed:cot_budget_reflect>\n</seed:think>",
    ),
    _inline("◁think▷", "◁/think▷"),
    _inline("<|begin_of_thought|>", "<|end_of_thought|>"),
    _inline("<|START_THINKING|>", "<|END_THINKING|>"),
    _inline("<|channel>", "<channel|>"),
    # Apriel's are words, which its template writes for a prompt.
    Block(_STEPS, _RESPONSE, "\n", f"{_RESPONSE}\n"),
    Block(_ANALYSIS, _FINAL, "<|message|>", f"<|end|><|start|>assistant{_FINAL}"),
)

MARKS = frozenset(mark for block in BLOCKS for mark in (block.opening, block.end))
"""Marks, of which most vocabularies that have them have each as one token."""

CHANNEL_MARKS = frozenset({"<|channel|>", "<|message|>", "<|start|>", "<|end|>"})
"""The tokens that gpt-oss writes its channels with; they mean that beside `<|channel|>` alone."""

_WRAPPERS = (
    ("<response>", "</response>"),
    ("<answer>", "</answer>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)
# gpt-oss where special tokens were left out: the channels' names run into the text.
_BARE_FINAL = "assistantfinal"
_BARE_ANALYSIS = re.compile(r"\A\s*(analysis|commentary)(?=[^\W\d_])")  # a letter of either case
# Granite 3.2 and Apriel mark both parts in words, which count at the beginning of an answer alone.
_IN_WORDS = (("Here is my thought process:", "Here is my response:"), (_STEPS, _RESPONSE))
_MARKED = [block for block in BLOCKS if block.opening != _STEPS]
_OPENED = re.compile("^[ \t]*(?:" + "|".join(re.escape(b.opening) for b in _MARKED) + ")", re.M)
_CHANNEL_END = re.compile(r"<\|(?:end|return|start)\|>")


def has_marks(text: str) -> bool:
    """Return whether a text has a mark of reasoning."""
    return any(mark in text for mark in MARKS)


def closing(text: str) -> str:
    """Return the text that closes an open block of reasoning; empty if none is open."""
    places = ((text.rfind(block.opening), len(block.opening), block) for block in BLOCKS)
    at, _, block = max(places, key=lambda place: place[:2])
    inside = text[at:]
    if at < 0 or block.end in inside:
        return ""
    return block.empty[len(inside) :] if block.empty.startswith(inside) else block.closing


def answered(text: str) -> str | None:
    """Return what follows the last end of reasoning.

    Args:
        text: what a model wrote, its marks of reasoning included.

    Returns:
        The text itself where there is no reasoning; None where the reasoning never ends.
    """
    worded = [end for begin, end in _IN_WORDS if text.lstrip().startswith(begin)]
    ends = [_BARE_FINAL, *(block.end for block in BLOCKS), *worded]
    cut = max((at + len(end) for end in ends if (at := text.rfind(end)) >= 0), default=0)
    rest = text[cut:]
    if _OPENED.search(rest) or _ANALYSIS in rest or _BARE_ANALYSIS.match(rest):
        return None
    if not cut:
        return None if worded else text
    return _unwrapped(_CHANNEL_END.split(rest)[0].lstrip())


def _unwrapped(text: str) -> str:
    """Return an answer without the marks around it."""
    for before, after in _WRAPPERS:
        if text.startswith(before):
            return text.removeprefix(before).partition(after)[0].strip()
    return text
