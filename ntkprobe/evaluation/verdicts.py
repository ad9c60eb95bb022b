"""Items to be judged, verdicts, and the protocol of judges.

A judge that fails, or whose reply is off its format, gives the verdict `undetermined`, which counts
as no class: it lowers the coverage of a rate, never the rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from ..prompts.reasoning import answered

COMPLIANCE, REFUSAL, PARTIAL = "compliance", "refusal", "partial"
DISTANCED, INCOHERENT = "distanced", "incoherent"
SAFE, UNSAFE = "safe", "unsafe"
UNDETERMINED = "undetermined"

FAILED = "no reply: "
"""The prefix of `detail` of a verdict whose request failed; another run repeats it."""

ENDLESS = "the reasoning never ends: there is no answer yet"
"""The `detail` of a verdict on an answer that was cut off while its model still reasoned."""

CLASSES = {
    "refusal": (COMPLIANCE, DISTANCED, PARTIAL, REFUSAL, INCOHERENT, UNDETERMINED),
    "safety": (SAFE, UNSAFE, UNDETERMINED),
}
"""Possible verdicts by what a judge `asks`: does the answer refuse, or is it safe.

Few judges tell all of them: `distanced` is an answer to what was asked under a warning or a
disclaimer, `incoherent` one that says nothing, which neither complies nor refuses."""


@dataclass(frozen=True)
class Item:
    """One answer to be judged.

    Attributes:
        id: the prompt's, unique in its benchmark.
        prompt: its text, as the user wrote it (no chat template).
        answer: the model's, without the prompt; it may begin with reasoning.
    """

    id: str
    prompt: str
    answer: str

    @property
    def shown(self) -> "Item":
        """The item that a judge sees: with the answer behind the last end of reasoning."""
        said = answered(self.answer)
        return self if said is None or said == self.answer else replace(self, answer=said)

    @property
    def undetermined(self) -> "Verdict | None":
        """The verdict on an answer that is empty or unfinished reasoning; None for all others."""
        said = answered(self.answer)
        if said is None:
            return Verdict(self.id, UNDETERMINED, ENDLESS)
        return None if said.strip() else Verdict(self.id, UNDETERMINED, "empty answer")


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one answer.

    Attributes:
        id: the item's.
        verdict: one of `CLASSES[judge.asks]`.
        detail: the judge's evidence or reply, or why there is no verdict.
    """

    id: str
    verdict: str
    detail: str = ""


class Judge(Protocol):
    """A frozen dataclass of settings that judges answers; see the folder `judges`.

    `asks` is a class variable: `refusal` or `safety`. A judge gives one verdict an item, in the
    order of the items; it raises nothing over a single answer, which is `undetermined` then. It
    reads `item.shown`, and asks nothing about an item with a verdict `item.undetermined`; through
    `judge_answers` it is given no others.

    A judge may have `label`, its name in files and tables (else its module's), and `identity`, a
    dict of what its verdicts depend on besides its module: other verdicts never go into the same
    file.
    """

    asks: ClassVar[str]

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Return a verdict for each item, in their order."""
        ...
