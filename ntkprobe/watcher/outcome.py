"""What became of a run's checkpoints, for the user's last line."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError, one_line


@dataclass
class Outcome:
    """What became of a run's checkpoints.

    Attributes:
        folder: where the tables are.
        new: steps measured now.
        known: steps that had been measured before.
        failed: why, by step, for those that could not be measured.
        total: how many steps the folder holds now.
        interrupted: whether the user stopped it.
        names: what steps are called, where these are stages.
    """

    folder: Path
    new: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    total: int = 0
    interrupted: bool = False
    names: dict[int, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The exit status."""
        return 130 if self.interrupted else 1 if self.failed else 0

    def add(self, other: "Outcome") -> None:
        """Count what became of other checkpoints of the same run."""
        self.new += other.new
        self.known += other.known
        self.failed |= other.failed

    def conclude(self) -> None:
        """Print a line on stderr for each failure.

        Raises:
            UserError: if nothing could be measured, and why.
        """
        failed = list(self.failed.values())
        if failed and not (self.new or self.known):
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise UserError(f"nothing could be measured: {failed[0]}{more}")
        for step, reason in self.failed.items():
            name = self.names.get(step, f"step {step}")
            print(one_line(f"ntkprobe: {name} failed: {reason}"), file=sys.stderr)

    def closing_line(self) -> str:
        """Return what there is now, and what to do next."""
        what = "stage" if self.names else "step"
        count = f"{self.total} {what}{'' if self.total == 1 else 's'} in {self.folder}"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        if self.interrupted:
            return f"{count}, {len(self.new)} new{failed}; stopped: run the same command to go on"
        if not self.total:
            return f"{count}{failed}"
        return f"{count}, {len(self.new)} new{failed}: ntkprobe figures {self.folder}"
