"""What the answers of a folder depend on: kept in `run.json`, compared before any is added."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UserError
from ..provenance import insist_on_agreement

COMPARED = ("model", "answers", "benchmarks")
"""Sections of `run.json` of which one folder has one setting."""
_TOLD = frozenset(
    {"name", "origin", "source", "licence", "published", "found", "of", "overlap", "server"}
    | {"template"}
)
"""Entries of these that are only told: another path to the same weights is the same model, and what
counts of a template is what it comes to (`resolved_template`)."""


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How a model answers.

    Attributes:
        max_new_tokens: of an answer.
        temperature: 0 for the most probable token each time; else answers are drawn.
        seed: of the draw; the same answer comes out whatever the batch.
        template: how prompts become tokens: `auto`, `chat`, `raw`, a shipped one, or a Jinja file.
        max_length: in tokens; a longer prompt loses the end of its text.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    template: str = "auto"
    max_length: int | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: naming the setting.
        """
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {self.max_new_tokens}: give 1 or more")
        if self.temperature < 0:
            raise UserError(f"--temperature {self.temperature}: give 0 (greedy) or more")

    def record(self) -> dict[str, Any]:
        """Return what is kept; the seed where it plays a part."""
        return {**asdict(self), "seed": self.seed if self.temperature else None}


def insist_on_equal(folder: object, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise if a setting of `new` contradicts `old`; what only one of them has does not.

    Args:
        folder: for the message.
        old: what a folder's `run.json` says.
        new: what is asked for now.

    Raises:
        UserError: naming the first such setting with both values.
    """  # ruff: ignore[docstring-extraneous-exception]
    before = dict(_leaves({key: old.get(key) or {} for key in COMPARED}))
    insist_on_agreement(
        folder, "answered", before, _leaves({key: new.get(key) or {} for key in COMPARED})
    )


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting that is compared, with its dotted name."""
    for key, item in value.items():
        if key in _TOLD and prefix:
            continue
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
