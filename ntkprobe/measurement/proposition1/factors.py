"""The two factors of Proposition 1 (A.7) at layer ℓ's output h, exactly or estimated.

Below it (A2), ⟨G_x′, G_x⟩_F for G = ∂h/∂θ: the trace of the kernel of h. Prompts of different
lengths have h of different sizes, and the paper does not say how to multiply them. They are aligned
at their last positions, and the shorter is padded with zeros: so ⟨G, G⟩ = ‖G‖² and
|⟨G′, G⟩| ≤ ‖G′‖ ‖G‖ hold.

Above it (A1), J_g = ∂z/∂h: the Jacobian of the last position's logits by h.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from ...estimators.gram import Gram
from ...kernel import Estimator, Probe, Table
from ...models import architecture
from ...models.parameters import requiring_grad
from ...models.replacement import replace_attributes, replace_module
from ..full_vocabulary import Head, ScaledIdentity, head_input, head_state, remaining_selection
from ..stored_parts import NO_STORAGE, Parts

_DIRECTIONS_AT_A_TIME = 32
_ROWS_AT_A_TIME = 64  # of the Jacobian, in one batched backward pass


@dataclass(frozen=True)
class FeatureProducts:
    """⟨G_x′, G_x⟩_F of all pairs.

    Attributes:
        inner: `[n, n]`; the diagonal is ‖G_x‖_F².
        error: their standard errors, zero where they are exact.
    """

    inner: Table
    error: Table


class HiddenStateProbe(Probe):
    """Reads `cotangents @ h`, with cotangents `[k, seq·d]`, instead of logits."""

    def read(self, logits: Float[Tensor, " inputs"]) -> Float[Tensor, " k"]:
        """Return the products with the prompt's own positions; later positions are padding."""
        assert self.cotangents is not None
        return self.cotangents.to(logits) @ logits[: self.cotangents.shape[1]]


class TruncatedModel(nn.Module):
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
        captured: list[Tensor] = []
        last = architecture.decoder_list(self)[-1]  # looked up now: estimators replace blocks

        def capture(module: nn.Module, inputs: Any, output: Any) -> None:
            captured.append(architecture.hidden_state(output))

        with architecture.hooked([(last, capture)]):
            self.model(input_ids=input_ids, **settings)
        flat = captured[0].flatten(1)
        return SimpleNamespace(logits=flat[:, None].expand(-1, input_ids.shape[1], -1))


@contextmanager
def truncated_after(model: nn.Module, layer: int) -> Generator[TruncatedModel]:
    """Truncate a model after layer ℓ inside the `with` block.

    Yields:
        The truncated model; the original is without its later blocks and its output matrix.
    """
    blocks = architecture.decoder_list(model)
    architecture.layer_output(model, layer)
    holder, name = next(
        (holder, name)
        for holder in model.modules()
        for name, child in holder.named_children()
        if child is blocks
    )
    head: Any = architecture.head(model)
    with replace_module(model, head, ScaledIdentity(1, head)):
        with replace_attributes(holder, **{name: blocks[:layer]}):
            yield TruncatedModel(model, layer).eval()


def feature_products(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    layer: int,
    chosen: dict[str, nn.Parameter],
    *,
    directions: int | None = None,
    seed: int = 0,
    estimator: Estimator | None = None,
    parts: Parts = NO_STORAGE,
) -> FeatureProducts:
    """Return ⟨G_x′, G_x⟩_F of all pairs of prompts.

    Args:
        model: the model.
        prompts: token ids of each prompt, nothing padded.
        layer: ℓ, counted from 1.
        chosen: θ, the parameters of G.
        directions: the number of random directions ω of h, ±1, the same for all prompts, to
            estimate from: the mean of ωᵀ G′ Gᵀ ω is the trace of G′ Gᵀ. None takes all coordinates:
            exact, with as many backward passes a prompt as h has numbers.
        seed: of the directions drawn.
        estimator: computes the kernel of h along directions; `Gram` by default.
        parts: keep the products of the directions that are done.
    """
    longest, width = max(map(len, prompts)), _width(model, prompts[0], layer)
    with truncated_after(model, layer) as lower:
        selection = remaining_selection(lower, chosen)
        method = estimator or Gram()

        def along(some: Float[Tensor, "k seq d"]) -> dict[str, Tensor]:
            probes = [
                HiddenStateProbe(ids, cotangents=some[:, -len(ids) :].flatten(1)) for ids in prompts
            ]
            # ω_iᵀ G′ Gᵀ ω_i of every direction
            return {"products": method(lower, probes, selection).diagonal(dim1=1, dim2=3)}

        batches = enumerate(_directions(longest, width, directions, seed))
        rows: list[Float64[Tensor, "n n k"]] = [
            parts.get(f"directions-{number}", partial(along, some))["products"]
            for number, some in batches
        ]
    values = torch.cat(rows, -1)
    if directions is None:
        return FeatureProducts(values.sum(-1), torch.zeros(values.shape[:2], dtype=torch.float64))
    return FeatureProducts(values.mean(-1), values.std(-1) / directions**0.5)


def _width(model: nn.Module, ids: Int[Tensor, " seq"], layer: int) -> int:
    with torch.no_grad(), architecture.capture(model, layer) as found:
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


@dataclass(frozen=True)
class Tail:
    """The part of a model after layer ℓ, at one prompt.

    Attributes:
        spectral: ‖J_g‖₂.
        frobenius: ‖J_g‖_F.
        last: h at the last position, on which DCR's loss depends.
    """

    spectral: float
    frobenius: float
    last: Float64[Tensor, " d"]

    def tensors(self) -> dict[str, Tensor]:
        """Return it as tensors by name."""
        numbers = torch.tensor([self.spectral, self.frobenius], dtype=torch.float64)
        return {"norms": numbers, "last": self.last}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Tail":
        """Return what `tensors` returned."""
        spectral, frobenius = tensors["norms"].tolist()
        return cls(spectral, frobenius, tensors["last"])


def tail_at(model: nn.Module, head: Head, ids: Int[Tensor, " seq"], layer: int) -> Tail:
    """Return the norms of the tail's Jacobian at one prompt, exactly.

    J_g = D E J_n, with the head E, the slope D of what follows it (1 without a soft cap), and J_n
    the Jacobian of the head's input: as many backward passes as the model is wide.
    """
    states, rows = head_input_jacobian(model, head.module, ids, layer)
    _, slope = head_state(model, head.module, ids)
    scaled = slope[:, None] * head.matrix
    values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    squares = torch.linalg.eigvalsh(root @ (rows @ rows.T) @ root).clamp(min=0)
    return Tail(float(squares[-1].sqrt()), float(squares.sum().sqrt()), states[-1])


def head_input_jacobian(
    model: nn.Module, head: nn.Module, ids: Int[Tensor, " seq"], layer: int
) -> tuple[Float64[Tensor, "seq d"], Float64[Tensor, "d inputs"]]:
    """Return h `[seq, d]`, and J_n `[d, seq·d]`: the Jacobian of the head's input by h."""
    captured: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        captured.append(architecture.hidden_state(output).detach().requires_grad_())
        return architecture.with_output_state(output, captured[0])

    with architecture.hooked([(architecture.layer_output(model, layer), cut)]):
        with requiring_grad(model, {}), torch.enable_grad():
            final = head_input(model, head, ids)
            basis = torch.eye(len(final), dtype=final.dtype, device=final.device)
            found = [_rows(final, captured[0], some) for some in basis.split(_ROWS_AT_A_TIME)]
    states = captured[0].detach()[0].double().cpu()
    return states, torch.cat(found)


def _rows(
    final: Float[Tensor, " d"], states: Float[Tensor, "1 seq d"], basis: Float[Tensor, "some d"]
) -> Float64[Tensor, "some inputs"]:
    (found,) = torch.autograd.grad(final, states, basis, retain_graph=True, is_grads_batched=True)
    return found.flatten(1).double().cpu()
