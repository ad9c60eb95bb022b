"""The gradient of each training pair, in batches: its products with other gradients, its features.

Products are the exact form of an attribution; features, projected gradients, are what an index
keeps.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ..models.batching import forgetting_lengths, together
from ..models.generation import length_batches, require_measurable
from ..models.gradients import Gradients, PerSampleFactors
from ..models.logits import try_padding
from ..models.validation import finite
from .observed import pair_losses
from .training_run import TrainedPair

FORMED = 1 << 28
"""Bytes of per-pair gradients that are formed at once."""


class PairGradients:
    """The gradients of pairs of one model, some at a time.

    Args:
        model: in evaluation mode.
        chosen: θ by name.
        pairs: all pairs of the run.
        batch_size: pairs in one pass.
        mean: of a pair's mean loss instead of its sum.
    """

    def __init__(
        self,
        model: nn.Module,
        chosen: dict[str, nn.Parameter],
        pairs: Sequence[TrainedPair],
        batch_size: int,
        mean: bool = False,
    ) -> None:
        self.model, self.mean = model, mean
        self.ids = [torch.tensor(pair.input_ids) for pair in pairs]
        self.labels = [torch.tensor(pair.labels) for pair in pairs]
        largest = max((4 * p.numel() for p in chosen.values()), default=1)
        self.batch_size = max(1, min(batch_size, FORMED // largest))
        self._gradients = PerSampleFactors(model, chosen)
        require_measurable(model, self.ids)
        try_padding(model, self.ids)

    def __call__(self, rows: Sequence[int]) -> Iterator[tuple[list[int], Gradients]]:
        """Yield batches of the pairs in these rows with their gradients, in any order."""
        some = [self.ids[row] for row in rows]
        for batch in length_batches(some, self.batch_size):
            for group in together(self.model, [some[place] for place in batch]):
                numbers = [rows[batch[place]] for place in group]
                for gradients in self._gradients(self._losses, numbers):
                    yield numbers, gradients

    def _losses(self, rows: Sequence[int]) -> Float[Tensor, "rows 1"]:
        """Return the losses of pairs."""
        given = ([self.ids[row] for row in rows], [self.labels[row] for row in rows])
        with forgetting_lengths(self.model):
            return finite(pair_losses(self.model, *given, mean=self.mean)[:, None], rows)


def products(
    pairs: PairGradients, rows: Sequence[int], held: dict[str, Float[Tensor, "m ..."]]
) -> Float64[Tensor, "rows m"]:
    """Return the inner products of the gradients of some pairs with m held ones."""
    return _collected(pairs, rows, lambda gradients: inner_products(gradients, held))


def features(
    pairs: PairGradients, rows: Sequence[int], project: Callable[[Gradients], Tensor]
) -> Float[Tensor, "rows parts size"]:
    """Return the projected gradients of some pairs."""
    return _collected(pairs, rows, project)


def inner_products(
    gradients: Gradients, held: dict[str, Float[Tensor, "m ..."]]
) -> Float64[Tensor, "b m"]:
    """Return ⟨gradient of a sample, held⟩ over all parameters, summed up in float64."""
    shares = [
        use.inner(held[name]).double().cpu() for name, uses in gradients.items() for use in uses
    ]
    return torch.stack(shares).sum(0)


def _collected(
    pairs: PairGradients, rows: Sequence[int], compute: Callable[[Gradients], Tensor]
) -> Tensor:
    """Return what is computed of each pair, in the order of `rows`."""
    found: dict[int, Tensor] = {}
    for numbers, gradients in pairs(rows):
        found |= zip(numbers, compute(gradients).detach().cpu(), strict=True)
    return torch.stack([found[row] for row in rows])
