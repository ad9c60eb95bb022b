"""Which rows of an operation's tensors belong to which prompt."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class NoRule(Exception):
    """No gradient rule covers an operation on a parameter."""


def require_rule(condition: bool, what: str) -> None:
    """Do nothing if the condition holds.

    Args:
        condition: whether the operation is covered.
        what: the operation that is not.

    Raises:
        NoRule: naming the operation, if the condition does not hold.
    """
    if not condition:
        raise NoRule(what)


@dataclass(frozen=True)
class PaddedBatch:
    """The rows of n prompts, padded on the right to `seq` positions."""

    lengths: tuple[int, ...]
    seq: int

    def by_prompt(self, x: Shaped[Tensor, "*rows width"]) -> Shaped[Tensor, "n seq width"]:
        """Return the rows by prompt, of a tensor with the prompts first or with rows flattened."""
        n, rows = len(self.lengths), x.shape[0]
        whole = (x.dim() >= 3 and rows == n) or (x.dim() == 2 and rows == n * self.seq)
        require_rule(whole, f"rows {tuple(x.shape)} of {n} prompts of {self.seq} positions")
        return x.reshape(n, -1, x.shape[-1])

    def row_counts(self, x: Shaped[Tensor, "*rows width"]) -> tuple[int, ...]:
        """Return how many of each prompt's rows are not padding."""
        rows = self.by_prompt(x).shape[1]
        return self.lengths if rows == self.seq else (rows,) * len(self.lengths)


@dataclass(frozen=True)
class GatheredRows:
    """Rows selected from a flattened batch, as an expert's are.

    Row r belongs to prompt `prompt[r]` and is its `slot[r]`-th selected row.
    """

    prompt: Int[Tensor, " rows"]
    slot: Int[Tensor, " rows"]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, batch: PaddedBatch, index: Int[Tensor, " rows"]) -> "GatheredRows":
        """Return the layout of rows `index` of the flattened batch."""
        prompt = torch.div(index, batch.seq, rounding_mode="floor")
        counts = torch.bincount(prompt, minlength=len(batch.lengths))
        order = prompt.argsort(stable=True)
        starts = (counts.cumsum(0) - counts)[prompt[order]]
        slot = torch.empty_like(index)
        slot[order] = torch.arange(len(index), device=index.device) - starts
        return cls(prompt, slot, tuple(counts.tolist()))

    def by_prompt(self, x: Float[Tensor, "rows width"]) -> Shaped[Tensor, "n seq width"]:
        """Return the rows by prompt, padded with zeros to the largest number of rows."""
        expected = x.dim() == 2 and len(x) == len(self.prompt)
        require_rule(expected, f"rows {tuple(x.shape)} where {len(self.prompt)} were gathered")
        out = x.new_zeros(len(self.lengths), max(self.lengths), x.shape[-1])
        out[self.prompt, self.slot] = x
        return out

    def row_counts(self, x: Float[Tensor, "rows width"]) -> tuple[int, ...]:
        """Return how many rows each prompt has."""
        return self.lengths


RowLayout = PaddedBatch | GatheredRows
