"""What the answers of a folder depend on: recorded in `run.json`, compared before any is added."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Annotated, Any

from ..errors import UserError
from ..settings import NO_OPTION, Flag, leaves, require_same_settings

COMPARED = ("model", "answers", "benchmarks")
"""Sections of `run.json` of which one folder has one setting."""
_NOT_COMPARED = frozenset(
    {"name", "origin", "source", "licence", "published", "found", "of", "overlap", "server"}
    | {"template"}
)
"""Entries of these that are recorded and not compared: another path to the same weights is the same
model, and what counts of a template is what it comes to (`resolved_template`)."""
ANSWERS = "Answers"
"""Heading of the options in `ntkprobe evaluate --help`."""


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How a model answers.

    Attributes:
        max_new_tokens: at most so many tokens in an answer.
        temperature: 0 for the most probable token each time; else answers are drawn.
        seed: seed of drawn answers; the same answer comes out whatever the batch.
        template: `auto` (chat where the tokenizer has one), `chat`, `raw`, a shipped one, or a
            Jinja file.
        max_length: at most so many tokens in a prompt; a longer one loses the end of its text.
    """

    max_new_tokens: Annotated[int, Flag(panel=ANSWERS)] = 256
    temperature: Annotated[float, Flag(panel=ANSWERS)] = 0.0
    seed: Annotated[int, Flag(panel=ANSWERS)] = 0
    template: Annotated[str, NO_OPTION] = "auto"
    max_length: Annotated[int | None, Flag(panel=ANSWERS)] = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: naming the setting.
        """
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {self.max_new_tokens}: give 1 or more")
        if not 0 <= self.temperature < inf:  # NaN is refused, too
            raise UserError(f"--temperature {self.temperature}: give 0 (greedy) or more")

    def record(self) -> dict[str, Any]:
        """Return what is kept; the seed where it plays a part."""
        return {**asdict(self), "seed": self.seed if self.temperature else None}


@dataclass(frozen=True, kw_only=True)
class AbilitySettings:
    """How abilities are measured.

    Attributes:
        num_fewshot: solved examples before a question.
        limit: only so many questions of each task, to try things out.
        chat_template: ask in the model's chat template.
    """

    num_fewshot: Annotated[int | None, Flag(shows="the task's own number")] = None
    limit: int | None = None
    chat_template: Annotated[bool, Flag(name="apply_chat_template")] = False


def compared(record: Mapping[str, Any], sections: Sequence[str] = COMPARED) -> dict[str, Any]:
    """Return the settings of a record that are compared, by dotted name.

    Args:
        record: of a folder.
        sections: of it, out of `COMPARED`.
    """
    return dict(leaves({key: record.get(key) or {} for key in sections}, _NOT_COMPARED))


def require_same_record(folder: object, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise if a setting of `new` contradicts `old`; what only one of them has does not.

    Args:
        folder: for the message.
        old: what a folder's `run.json` says.
        new: what is asked for now.

    Raises:
        UserError: naming the first such setting with both values.
    """
    models = [record.get("model") or {} for record in (old, new)]
    if all(models) and ("server" in models[0]) != ("server" in models[1]):
        kinds = ["a server's model" if "server" in model else "a local model" for model in models]
        raise UserError(
            f"{folder} has answers of {kinds[0]}, and this is {kinds[1]}: give another "
            "--output-dir, or --overwrite"
        )
    require_same_settings(folder, "answered", compared(old), compared(new))
