"""What a judge is asked, and what it may say: an answer that it cannot judge is *undetermined*.

A judge that fails, or that answers off its own format, says `undetermined`, and such a verdict
counts as neither class: it lowers the coverage of a rate, never the rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from ..prompts.reasoning import answered

COMPLIANCE, REFUSAL, PARTIAL = "compliance", "refusal", "partial"
SAFE, UNSAFE = "safe", "unsafe"
UNDETERMINED = "undetermined"

FAILED = "no reply: "
"""How the `detail` of a verdict begins that another run should ask for again."""

ENDLESS = "the reasoning never ends: there is no answer yet"
"""The `detail` of a verdict on an answer that was cut off while its model still reasoned."""

CLASSES = {
    "refusal": (COMPLIANCE, PARTIAL, REFUSAL, UNDETERMINED),
    "safety": (SAFE, UNSAFE, UNDETERMINED),
}
"""What a judge may say, by what it `asks`: whether the answer refuses, or whether it is safe."""


@dataclass(frozen=True)
class Item:
    """One answer to be judged.

    Attributes:
        id: the prompt's, unique in its benchmark.
        prompt: its text, as the user wrote it (no chat template).
        answer: what the model said, the prompt not included; its reasoning may stand in front.
    """

    id: str
    prompt: str
    answer: str

    @property
    def shown(self) -> "Item":
        """What a judge is shown: the answer that follows the last end of reasoning."""
        said = answered(self.answer)
        return self if said is None or said == self.answer else replace(self, answer=said)

    @property
    def undetermined(self) -> "Verdict | None":
        """The verdict of every judge on an answer that says nothing; None for one to be judged."""
        said = answered(self.answer)
        if said is None:
            return Verdict(self.id, UNDETERMINED, ENDLESS)
        return None if said.strip() else Verdict(self.id, UNDETERMINED, "empty answer")


@dataclass(frozen=True)
class Verdict:
    """What a judge says about one answer.

    Attributes:
        id: the item's.
        verdict: one of `CLASSES[judge.asks]`.
        detail: what the judge said literally, or why there is no verdict.
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
    dict of what its verdicts depend on: other verdicts never go into the same file.
    """

    asks: ClassVar[str]

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Return a verdict for each item, in their order."""
        ...
