"""Extraction of triggers from harmful prompts, with counts of the outcomes; it can be continued.

An extractor is a module `snake_case` of `extractors/` with the class `SnakeCase`, a frozen
dataclass of settings with `extract(examples)`, which yields for each example, as it is done, its
number and its trigger, a `ScoredTrigger`, or a reason why it has none.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import UserError
from ..prompts.prompt_set import PromptSet, normalised
from ..prompts.rendering import current_day
from ..settings import require_same_settings
from ..storage import replacing

WORD = re.compile(r"\w+(?:['’-]\w+)*")
"""A word; an apostrophe or hyphen inside belongs to it."""


@dataclass(frozen=True)
class Example:
    """A harmful training example: a prompt and, where known, the refusal that is learnt."""

    prompt: str
    refusal: str = ""


@dataclass(frozen=True)
class ScoredTrigger:
    """A trigger, and a score: how much of the prompt it represents, as its extractor defines it."""

    text: str
    score: float


@dataclass(frozen=True)
class Trigger:
    """A trigger, its source prompt and score; `response` is a compliant answer, or empty."""

    text: str
    source: str
    score: float
    response: str = ""


class Extractor(Protocol):
    """The interface of the classes in `extractors/`."""

    def extract(self, examples: Sequence[Example]) -> Iterable[tuple[int, ScoredTrigger | str]]:
        """Yield each example's number and its trigger, or why it has none."""


@dataclass(frozen=True)
class Extraction:
    """The distinct triggers, and the outcomes of all prompts.

    Attributes:
        triggers: in the order of the prompts that they are from.
        counts: prompts, and of these: without a trigger, giving one that is itself harmful, giving
            one that another gives too.
        reasons: why prompts have none, with how often.
    """

    triggers: tuple[Trigger, ...]
    counts: dict[str, int]
    reasons: dict[str, int] = field(default_factory=dict)


def read_examples(files: Sequence[str | Path]) -> list[Example]:
    """Return the harmful examples of files.

    Args:
        files: as `PromptSet` reads them; of a file with groups the group `toxic`, else all rows.

    Returns:
        Examples, in the files' order; `response` is read as the refusal.

    Raises:
        UserError: if there is none.
    """
    prompts = PromptSet.from_files(files, otherwise="toxic") if files else ()
    found = [Example(p.text, p.response) for p in prompts if p.group == "toxic"]
    if not found:
        raise UserError("no harmful prompts: give files without groups, or with the group toxic")
    return found


def read_benign(files: Sequence[str | Path]) -> PromptSet:
    """Return the benign prompts of files.

    Args:
        files: as `PromptSet` reads them; of a file with groups all but `toxic`, else all rows.

    Returns:
        Prompts, in the files' order.

    Raises:
        UserError: if there is none.
    """
    prompts = PromptSet.from_files(files, otherwise="normal") if files else ()
    found = tuple(prompt for prompt in prompts if prompt.group != "toxic")
    if not found:
        raise UserError("no benign prompts: give files without groups, or with others than toxic")
    return PromptSet(found)


class Record(Protocol):
    """Stores outcomes while an extraction runs: `Progress`."""

    def known(self, examples: Sequence[Example]) -> dict[int, ScoredTrigger | str]:
        """Return the outcomes of an earlier call, by the example's number."""

    def add(self, example: Example, found: ScoredTrigger | str) -> None:
        """Store the outcome of an example."""


def extract(
    extractor: Extractor, examples: Sequence[Example], record: Record | None = None
) -> Extraction:
    """Return the triggers of harmful examples, each once.

    Of those that differ in case, punctuation and spacing only, the one with the highest score is
    kept. A trigger that is itself one of the harmful prompts is left out: training would teach to
    answer it.

    Args:
        extractor: from `extractors/`.
        examples: harmful prompts.
        record: stores every outcome, and has those of a call that was stopped.

    Returns:
        Triggers and counts; that there are none is a `UserError`.
    """
    found = {} if record is None else record.known(examples)
    left = [number for number in range(len(examples)) if number not in found]
    for position, each in extractor.extract([examples[number] for number in left]):
        found[left[position]] = each
        if record is not None:
            record.add(examples[left[position]], each)
    return _distinct(examples, found)


def _distinct(examples: Sequence[Example], found: dict[int, ScoredTrigger | str]) -> Extraction:
    """Return the distinct triggers, with counts of the other outcomes.

    Raises:
        UserError: if there is no trigger.
    """
    harmful = {normalised(example.prompt) for example in examples}
    counts = {"prompts": len(examples), "none": 0, "harmful": 0, "repeated": 0}
    reasons: dict[str, int] = {}
    best: dict[str, tuple[int, ScoredTrigger]] = {}
    for number, each in sorted(found.items()):
        if isinstance(each, str):
            counts["none"] += 1
            reasons[each] = reasons.get(each, 0) + 1
        elif (key := normalised(each.text)) in harmful:
            counts["harmful"] += 1
        else:
            counts["repeated"] += key in best
            if key not in best or each.score > best[key][1].score:
                best[key] = (number, each)
    if not best:
        raise UserError(f"no triggers in {len(examples)} prompts: {describe(counts, reasons)}")
    made = (
        Trigger(each.text, examples[row].prompt, each.score)
        for row, each in sorted(best.values(), key=lambda one: one[0])
    )
    return Extraction(tuple(made), counts, reasons)


def describe(counts: dict[str, int], reasons: dict[str, int]) -> str:
    """Return one line on the prompts that gave no trigger of their own."""
    parts = [f"{counts['none']} had none"] if counts["none"] else []
    parts += [f"{number}: {why}" for why, number in sorted(reasons.items(), key=lambda r: -r[1])]
    if counts["harmful"]:
        parts.append(f"{counts['harmful']} gave a harmful prompt, left out")
    if counts["repeated"]:
        parts.append(f"{counts['repeated']} gave one that another gives too")
    return "; ".join(parts) or "every prompt gave another trigger"


def words_of(text: str) -> list[str]:
    """Return the words of a text."""
    return WORD.findall(text)


def kept_share(trigger: str, prompt: str) -> float:
    """Return the share of a prompt's words that are also in a trigger."""
    left = words_of(trigger.casefold())
    own = words_of(prompt.casefold())
    return sum(word in left for word in own) / max(len(own), 1)


def write_triggers(path: Path, triggers: Sequence[Trigger], extractor: str) -> None:
    """Write triggers as JSONL, atomically.

    Args:
        path: ends in `.jsonl`, from which readers infer the format.
        triggers: rows of trigger, source (the harmful prompt), score, extractor, and response where
            any has an answer.
        extractor: its name, for the record.

    Raises:
        UserError: for another ending.
    """
    if path.suffix != ".jsonl":
        raise UserError(f"--output-file {path}: give a name that ends in .jsonl")
    answered = any(trigger.response for trigger in triggers)
    rows: list[dict[str, object]] = [
        {"trigger": t.text, "source": t.source, "score": round(t.score, 6), "extractor": extractor}
        | ({"response": t.response} if answered else {})
        for t in triggers
    ]
    with replacing(path) as hidden:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        hidden.write_text("".join(lines), "utf-8")


FAILED = "failed: "
"""The prefix of a reason after which a prompt is tried again."""


class Progress:
    """A hidden file in the output's folder: a line of settings, then a line a prompt."""

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        """Read the file that an earlier call left; UserError if it had other settings.

        Args:
            output: the file that is to be written in the end.
            settings: what the findings depend on, as JSON has it.
        """
        self.path = output.with_name(f".{output.name}.part")
        self.settings = json.loads(json.dumps(dict(settings)))
        self.day = current_day()
        """The day that templates print: that of the call which began."""
        self._found: dict[tuple[str, str], ScoredTrigger | str] = {}
        if self.path.exists():
            self._read()

    def known(self, examples: Sequence[Example]) -> dict[int, ScoredTrigger | str]:
        """Return the outcomes of an earlier call, by the example's number, without failures."""
        keys = [(example.prompt, example.refusal) for example in examples]
        return {i: self._found[key] for i, key in enumerate(keys) if key in self._found}

    def add(self, example: Example, found: ScoredTrigger | str) -> None:
        """Append the outcome of an example."""
        what = {"why": found} if isinstance(found, str) else {"text": found.text}
        score = {} if isinstance(found, str) else {"score": found.score}
        row = {"prompt": example.prompt, "refusal": example.refusal, **what, **score}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun = self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            lines = [row] if begun else [{**self.settings, "day": self.day}, row]
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def clear(self) -> None:
        """Delete the file: the extraction is finished, or starts from the beginning."""
        self.path.unlink(missing_ok=True)
        self._found, self.day = {}, current_day()

    def _unknown(self, name: str) -> Any:
        """Return what a setting counts as that an earlier version did not record."""
        return self.settings[name] if name.endswith("_digest") else None

    def _read(self) -> None:
        """Read the file; an incomplete last line is dropped.

        Raises:
            UserError: if it belongs to other settings.
        """  # ruff: ignore[docstring-extraneous-exception]
        whole = self.path.read_text("utf-8").rpartition("\n")[0].split("\n")
        before, *rows = [json.loads(line) for line in whole if line] or [self.settings]
        self.day = before.pop("day", self.day)
        require_same_settings(
            "an unfinished extraction",
            "begun",
            {name: before.get(name, self._unknown(name)) for name in self.settings},
            self.settings,
            both=True,
            instead="give another --output-file, or --overwrite",
        )
        for row in rows:
            found = ScoredTrigger(row["text"], row["score"]) if "text" in row else row["why"]
            if isinstance(found, ScoredTrigger) or not found.startswith(FAILED):
                self._found[row["prompt"], row["refusal"]] = found
        begun = {**self.settings, **before, "day": self.day}
        with replacing(self.path) as hidden:  # without the torn line
            lines = (json.dumps(line) + "\n" for line in [begun, *rows])
            hidden.write_text("".join(lines), "utf-8")
