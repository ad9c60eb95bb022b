"""Outcomes of an unfinished extraction on disk, so that a stopped one can be continued."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..prompts.rendering import current_day
from .extraction import Example, ScoredTrigger

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

    def _read(self) -> None:
        """Read the file; an incomplete last line is dropped.

        Raises:
            UserError: if it belongs to other settings.
        """
        whole = self.path.read_text("utf-8").rpartition("\n")[0].split("\n")
        before, *rows = [json.loads(line) for line in whole if line] or [self.settings]
        self.day = before.pop("day", self.day)
        for key in {**before, **self.settings}:
            if before.get(key) != self.settings.get(key):
                raise UserError(
                    f"an unfinished extraction has {key} = {before.get(key)!r}, now asked for is "
                    f"{self.settings.get(key)!r}: give another --output-file, or --overwrite"
                )
        for row in rows:
            found = ScoredTrigger(row["text"], row["score"]) if "text" in row else row["why"]
            if isinstance(found, ScoredTrigger) or not found.startswith(FAILED):
                self._found[row["prompt"], row["refusal"]] = found
        text = "".join(json.dumps(line) + "\n" for line in [{**before, "day": self.day}, *rows])
        self.path.write_text(text, "utf-8")  # without the torn line
