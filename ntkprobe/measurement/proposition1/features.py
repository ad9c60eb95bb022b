"""⟨G_x′, G_x⟩_F for G = ∂h/∂θ: the trace of the kernel of layer ℓ's output (A.7, A2).

Prompts of unequal lengths have h of unequal sizes, and the paper says nothing about how they meet.
They are aligned at their last positions, and what the longer has more of meets zeros: so
⟨G, G⟩ = ‖G‖² and |⟨G′, G⟩| ≤ ‖G′‖ ‖G‖ hold.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from ...estimators.gram import Gram
from ...kernel import Blocks, Estimator, Probe, Table
from ...models import architecture as hooks
from ..full_vocabulary import selecting, standing_in, swapped

_DIRECTIONS_AT_A_TIME = 32


@dataclass(frozen=True)
class Products:
    """⟨G_x′, G_x⟩_F of all pairs.

    Attributes:
        inner: `[n, n]`; the diagonal is ‖G_x‖_F².
        error: their standard errors, zero where they are exact.
    """

    inner: Table
    error: Table


class StateProbe(Probe):
    """Reads weightings of h, `cotangents` `[k, seq·d]`, in place of logits."""

    def read(self, logits: Float[Tensor, " inputs"]) -> Float[Tensor, " k"]:
        """Return the weightings of the prompt's own positions; what follows them is padding."""
        assert self.cotangents is not None
        return self.cotangents.to(logits) @ logits[: self.cotangents.shape[1]]


class UpTo(nn.Module):
    """A model that ends at layer ℓ: its "logits", at every position, are h at all positions."""

    def __init__(self, model: nn.Module, layer: int) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        text = (
            config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        )
        self.config = copy(text)
        self.config.num_hidden_layers = layer

    def forward(self, input_ids: Int[Tensor, "batch seq"], **settings: Any) -> SimpleNamespace:
        """Return `.logits`, `[batch, seq, seq·d]`, all positions alike."""
        kept: list[Tensor] = []
        last = hooks.decoder_list(self)[-1]  # as it stands now: estimators put others in its place

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            kept.append(hooks.hidden_state(output))

        with hooks.hooked([(last, keep)]):
            self.model(input_ids=input_ids, **settings)
        flat = kept[0].flatten(1)
        return SimpleNamespace(logits=flat[:, None].expand(-1, input_ids.shape[1], -1))


@contextmanager
def up_to(model: nn.Module, layer: int) -> Generator[UpTo]:
    """Cut a model off after layer ℓ inside the `with` block.

    Yields:
        The model that ends there; the given one has lost its later blocks and its output matrix.
    """
    blocks = hooks.decoder_list(model)
    hooks.layer_output(model, layer)
    holder, name = next(
        (holder, name)
        for holder in model.modules()
        for name, child in holder.named_children()
        if child is blocks
    )
    head: Any = hooks.head(model)
    with standing_in(model, head, nn.Identity()):
        with swapped(holder, **{name: blocks[:layer]}):
            yield UpTo(model, layer).eval()


def feature_products(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    layer: int,
    chosen: dict[str, nn.Parameter],
    *,
    directions: int | None = None,
    seed: int = 0,
    estimator: Estimator | None = None,
) -> Products:
    """Return ⟨G_x′, G_x⟩_F of all pairs of prompts.

    Args:
        model: the model.
        prompts: token ids of each prompt, nothing padded.
        layer: ℓ, counted from 1.
        chosen: θ, the parameters of G.
        directions: estimate from so many random directions of h, ±1, the same for all prompts: the
            mean of ωᵀ G′ Gᵀ ω is the trace of G′ Gᵀ. None goes through all coordinates: exact, at
            as many backward passes a prompt as h has numbers.
        seed: of the directions drawn.
        estimator: what computes the kernel of h along directions; `Gram` by default.
    """
    longest, width = max(map(len, prompts)), _width(model, prompts[0], layer)
    with up_to(model, layer) as lower:
        selection = selecting(lower, chosen)
        rows: list[Float64[Tensor, "n n k"]] = []
        for some in _directions(longest, width, directions, seed):
            probes = [
                StateProbe(ids, cotangents=some[:, -len(ids) :].flatten(1)) for ids in prompts
            ]
            blocks = (estimator or Gram())(lower, probes, selection)
            rows.append(_each(blocks))
    values = torch.cat(rows, -1)
    if directions is None:
        return Products(values.sum(-1), torch.zeros(values.shape[:2], dtype=torch.float64))
    return Products(values.mean(-1), values.std(-1) / directions**0.5)


def _each(blocks: Blocks) -> Float64[Tensor, "n m k"]:
    """Return ω_iᵀ G′ Gᵀ ω_i of every direction."""
    return blocks.diagonal(dim1=1, dim2=3)


def _width(model: nn.Module, ids: Int[Tensor, " seq"], layer: int) -> int:
    """Return d, the width of h."""
    with torch.no_grad(), hooks.capture(model, layer) as found:
        model(input_ids=ids[None].to(next(model.parameters()).device), use_cache=False)
    return found[0].shape[-1]


def _directions(
    longest: int, width: int, count: int | None, seed: int
) -> Iterator[Float[Tensor, "some seq d"]]:
    """Yield directions of h, some at a time: every coordinate, or random signs."""
    if count is None:
        for rows in torch.arange(longest * width).split(_DIRECTIONS_AT_A_TIME):
            unit = torch.zeros(len(rows), longest * width)
            unit[torch.arange(len(rows)), rows] = 1
            yield unit.view(-1, longest, width)
        return
    generator = torch.Generator().manual_seed(seed)
    signs = 2.0 * torch.randint(0, 2, (count, longest, width), generator=generator) - 1
    yield from signs.split(_DIRECTIONS_AT_A_TIME)
