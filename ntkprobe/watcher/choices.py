"""Which checkpoints of a run are measured: ranges of steps, shards, and how a run is followed."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoints import Checkpoint, Incomplete, read_marker
from ..errors import UserError

RANGE = re.compile(r"(\d*)(?::(\d*)(?::(\d+))?)?")


@dataclass(frozen=True)
class StepRange:
    """The steps from `first` to `last` (both included) in strides of `stride`."""

    first: int = 0
    last: int | None = None
    stride: int = 1

    def __contains__(self, step: int) -> bool:
        return (
            step >= self.first
            and (self.last is None or step <= self.last)
            and (step - self.first) % self.stride == 0
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which checkpoints this process measures.

    Attributes:
        steps: ranges of steps; empty for all.
        shard: (i, n): this is worker i of n, counted from 0.
    """

    steps: tuple[StepRange, ...] = ()
    shard: tuple[int, int] = (0, 1)

    def wants(self, checkpoint: Checkpoint, position: int) -> bool:
        """Return whether a checkpoint is this worker's.

        Args:
            checkpoint: any of the run.
            position: its place among those seen, for runs that do not say how far apart they are.
        """
        if self.steps and not any(checkpoint.step in steps for steps in self.steps):
            return False
        index, workers = self.shard
        return workers == 1 or _ordinal(checkpoint, position) % workers == index

    def wants_place(self, place: int) -> bool:
        """Return whether the stage at a place, counted from 0, is this worker's."""
        chosen = not self.steps or any(place in steps for steps in self.steps)
        return chosen and place % self.shard[1] == self.shard[0]


@dataclass(frozen=True, kw_only=True)
class Following:
    """How a run that still trains is followed.

    Attributes:
        poll_interval: seconds between two looks.
        idle_timeout: stop after so many seconds without a new checkpoint; None for never.
        until_step: stop when this step has been measured.
    """

    poll_interval: float = 10.0
    idle_timeout: float | None = None
    until_step: int | None = None

    @property
    def patience(self) -> float:
        """Seconds to wait for a new checkpoint."""
        return float("inf") if self.idle_timeout is None else self.idle_timeout


def parse_steps(spec: str) -> tuple[StepRange, ...]:
    """Return the ranges in `A:B:C`, several joined by commas.

    Args:
        spec: steps from A to B, both included, in strides of C from A on; each may be left out, and
            a lone number is that step.

    Returns:
        The ranges.

    Raises:
        UserError: if it is none.
    """
    ranges = []
    for term in spec.replace(" ", "").split(","):
        match = RANGE.fullmatch(term)
        if not match or not term or match[3] == "0":
            raise UserError(f"--steps {spec!r}: give A:B:C (from A to B by C), such as 0:2000:100")
        first = int(match[1] or 0)
        last = int(match[2]) if match[2] else (None if ":" in term else first)
        ranges.append(StepRange(first, last, int(match[3] or 1)))
    return tuple(ranges)


def parse_shard(spec: str | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (i, n) of `i/n`; without it, what torchrun or a Slurm array says.

    Args:
        spec: such as `0/4`; i counts from 0.
        environment: where RANK and WORLD_SIZE, or SLURM_ARRAY_TASK_ID, _MIN, _STEP and _COUNT are;
            an array of processes under torchrun counts each of them.

    Returns:
        This worker's number, and how many there are.

    Raises:
        UserError: if i/n is no such pair, or an array's numbers are not evenly spaced.
    """
    if spec is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", spec)
        if not match or int(match[1]) >= int(match[2]):
            raise UserError(f"--shard {spec!r}: give i/n with i from 0 to n - 1, such as 0/4")
        return int(match[1]), int(match[2])

    def number(name: str, default: int) -> int:
        value = environment.get(name, "")
        return int(value) if value.isdigit() else default

    first, count = number("SLURM_ARRAY_TASK_MIN", 0), max(number("SLURM_ARRAY_TASK_COUNT", 1), 1)
    gap = max(number("SLURM_ARRAY_TASK_STEP", 1), 1)
    place, rest = divmod(number("SLURM_ARRAY_TASK_ID", first) - first, gap)
    last = number("SLURM_ARRAY_TASK_MAX", first)
    if rest or not 0 <= place < count or last >= first + gap * count:
        raise UserError("the numbers of this Slurm array are not evenly spaced: give --shard i/n")
    rank, size = number("RANK", 0), max(number("WORLD_SIZE", 1), 1)
    return place * size + rank, count * size


def _ordinal(checkpoint: Checkpoint, position: int) -> int:
    """Return a checkpoint's number in its run, which stays while others are deleted."""
    try:
        every = read_marker(checkpoint.path).save_steps
    except (Incomplete, UserError):
        every = 0
    return -(-checkpoint.step // every) if every else position
