"""Which rows of an operation's tensors belong to which prompt."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class NoRule(Exception):
    """An operation on a parameter is none that the rules know."""


def require(holds: bool, what: str) -> None:
    """Do nothing where it holds.

    Raises:
        NoRule: saying `what` no rule knows, where it does not hold.
    """
    if not holds:
        raise NoRule(what)


@dataclass(frozen=True)
class Batch:
    """Prompts of a batch, right-padded to `seq` positions."""

    lengths: tuple[int, ...]
    seq: int

    def lay(self, x: Shaped[Tensor, "*rows width"]) -> Shaped[Tensor, "n seq width"]:
        """Return the rows by prompt, from any of the shapes that a batch takes on its way."""
        n, rows = len(self.lengths), x.shape[0]
        whole = (x.dim() >= 3 and rows == n) or (x.dim() == 2 and rows == n * self.seq)
        require(whole, f"rows {tuple(x.shape)} of {n} prompts of {self.seq} positions")
        return x.reshape(n, -1, x.shape[-1])

    def used(self, x: Shaped[Tensor, "*rows width"]) -> tuple[int, ...]:
        """Return how many of each prompt's rows are not padding."""
        rows = self.lay(x).shape[1]
        return self.lengths if rows == self.seq else (rows,) * len(self.lengths)


@dataclass(frozen=True)
class Gathered:
    """Rows picked out of a batch, an expert's say: of prompt `prompt[r]`, its `slot[r]`-th."""

    prompt: Int[Tensor, " rows"]
    slot: Int[Tensor, " rows"]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, batch: Batch, index: Int[Tensor, " rows"]) -> "Gathered":
        """Return the layout of rows `index` of the flattened batch."""
        prompt = torch.div(index, batch.seq, rounding_mode="floor")
        counts = torch.bincount(prompt, minlength=len(batch.lengths))
        order = prompt.argsort(stable=True)
        starts = (counts.cumsum(0) - counts)[prompt[order]]
        slot = torch.empty_like(index)
        slot[order] = torch.arange(len(index), device=index.device) - starts
        return cls(prompt, slot, tuple(counts.tolist()))

    def lay(self, x: Float[Tensor, "rows width"]) -> Shaped[Tensor, "n seq width"]:
        """Return the rows by prompt, those that it has fewer of zero."""
        known = x.dim() == 2 and len(x) == len(self.prompt)
        require(known, f"rows {tuple(x.shape)} where {len(self.prompt)} were gathered")
        out = x.new_zeros(len(self.lengths), max(self.lengths), x.shape[-1])
        out[self.prompt, self.slot] = x
        return out

    def used(self, x: Float[Tensor, "rows width"]) -> tuple[int, ...]:
        """Return how many rows each prompt has."""
        return self.lengths


Layout = Batch | Gathered
