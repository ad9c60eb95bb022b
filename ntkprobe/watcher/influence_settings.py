"""Which pairs' influence is measured along a run. Loads no torch before such settings are made."""

from dataclasses import dataclass, fields
from typing import Any

from ..errors import UserError
from ..prompts.prompt_set import PromptSet


@dataclass(frozen=True, kw_only=True)
class InfluenceSettings:
    """Which pairs' influence on which answers is measured, and how.

    Attributes:
        updated: the pairs that are learnt: prompts with the answer as `response`.
        target: what changes: `refusal`, log P_refuse.
        loss: `sum`, `mean` or `first_token` (`ntkprobe.measurement.influence.LOSSES`).
        parameters: what a step moves; `auto` is `lora` for adapters, else `all`.
        phrases: the name of a phrase set, or phrases.
        apostrophes: `ascii`, `curly` or `both`.
        per_group: observed prompts and updated pairs of each group at most; None for all.
        seed: of their choice.
        system: the system message that the pairs are learnt with; None for the template's own.
        max_length: the tokens at which pairs are cut; None to leave them whole.
    """

    updated: PromptSet
    target: str = "refusal"
    loss: str = "sum"
    parameters: str = "auto"
    phrases: str | tuple[str, ...] = "paper31"
    apostrophes: str = "ascii"
    per_group: int | None = 25
    seed: int = 0
    system: str | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        from ..measurement.influence import LOSSES, answered
        from ..models.parameters import ParameterSelection

        answered(self.updated)
        if self.target != "refusal":
            raise UserError(f"no --influence {self.target!r}: the only one is refusal")
        if self.loss not in LOSSES:
            raise UserError(f"no --influence-loss {self.loss!r}: choose from {list(LOSSES)}")
        if self.parameters != "auto":
            ParameterSelection.parse(self.parameters)

    @property
    def needs_adapter(self) -> bool:
        """Whether it is about an adapter's own parameters, where there is one."""
        from ..models.parameters import ParameterSelection

        return self.parameters == "auto" or (
            "lora" in ParameterSelection.parse(self.parameters).terms
        )

    def sample(self) -> PromptSet:
        """Return the pairs that are measured."""
        return self.updated.sample(self.per_group, self.seed)

    def record(self) -> dict[str, Any]:
        """Return the settings, the pairs by their digest."""
        names = [each.name for each in fields(self) if each.name != "updated"]
        pairs = {"digest": self.updated.digest, "count": len(self.updated)}
        return {**{name: getattr(self, name) for name in names}, "updated": pairs}
