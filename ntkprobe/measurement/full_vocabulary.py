"""‖K(x′,x)‖_F with every logit of the vocabulary read, exactly and without the V² entries.

The logits are z = φ(E h): the head E takes the hidden state h to V numbers, and φ, a soft cap or
nothing, acts on each alone. With D = φ′ at a prompt, and J_h the Jacobian of h,

    K(x′,x) = D′ (E K_h Eᵀ + E B + B̃ᵀ Eᵀ + (h′·h) I) D,      K_h = J_h(x′) J_h(x)ᵀ, `[d, d]`.

K_h takes d backward passes a prompt where K takes V. The other terms are there if E is among the
selected parameters; B and B̃, if it is the embedding too (tied): what the rows that one prompt
looks up share with the head of the other, so that they have as many columns as it has tokens.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from .. import estimators, plugins
from ..kernel import Blocks, Estimator, Probe, Table, last_logits
from ..models import architecture as hooks
from ..models.logits import check_logits
from ..models.parameters import (
    ParameterSelection,
    adapter_parameters,
    effective_parameters,
    requiring_grad,
)
from ..models.validation import refuse

_ROWS_AT_A_TIME = 2**14  # of K_h, which then takes 2 GiB
_INSTEAD = "take random probes, which read any model"


def full_vocabulary_norms(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    parameters: str | ParameterSelection = "all",
    *,
    estimator: str | Estimator = "gram",
) -> Table:
    """Return ‖K(x′,x)‖_F over all logits, exactly.

    Args:
        model: the model.
        prompts: token ids of each prompt, nothing padded.
        parameters: the selection.
        estimator: what computes K_h, the kernel of the hidden state that enters the head, by its
            name or with its settings.

    Returns:
        `[n, n]` float64, rows observed x′, columns updated x. Takes d backward passes a prompt,
        again for each tile of prompts whose K_h fit into memory, and 4 V·d² multiply-adds a pair.
    """
    method = plugins.instance(estimators, estimator)
    check_logits(model, prompts)
    chosen = ParameterSelection.parse(parameters).parameters(model)
    head = Head.of(model, chosen)
    ends = [head.end(model, ids) for ids in prompts]
    found = torch.zeros(len(prompts), len(prompts), dtype=torch.float64)
    tiles = torch.arange(len(prompts)).split(max(1, _ROWS_AT_A_TIME // (2 * head.matrix.shape[1])))
    for tile, other in combinations_with_replacement(tiles, 2):
        both = torch.cat([tile, other]).unique().tolist()
        inner = hidden_kernel(model, [prompts[a] for a in both], chosen, method)
        for (i, a), (j, b) in combinations_with_replacement(enumerate(both), 2):
            found[a, b] = found[b, a] = head.norm(ends[a], ends[b], inner[i, :, j])
    return found


def full_vocabulary_gradients(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    parameters: str | ParameterSelection = "all",
    *,
    estimator: str | Estimator = "gram",
) -> Float64[Tensor, " n"]:
    """Return ‖∂z/∂θ‖_F of all logits, exactly: the root of the trace of K(x,x).

    Args:
        model: the model.
        prompts: token ids of each prompt, nothing padded.
        parameters: the selection.
        estimator: what computes K_h, by its name or with its settings.

    Returns:
        `[n]` float64.
    """
    method = plugins.instance(estimators, estimator)
    check_logits(model, prompts)
    chosen = ParameterSelection.parse(parameters).parameters(model)
    head = Head.of(model, chosen)
    squares = [
        head.trace(head.end(model, ids), hidden_kernel(model, [ids], chosen, method)[0, :, 0])
        for ids in prompts
    ]
    return torch.tensor(squares, dtype=torch.float64).clamp(min=0).sqrt()


@dataclass(frozen=True)
class End:
    """What one prompt contributes at the head.

    Attributes:
        hidden: h, what the head multiplies.
        slope: D, the derivative of each logit by what the head gives out; 1 without a soft cap.
        rows: the rows of E that the prompt looks up, none where E is no selected embedding.
        moves: ∂h/∂E of those rows.
    """

    hidden: Float64[Tensor, " d"]
    slope: Float64[Tensor, " vocab"]
    rows: Int[Tensor, " rows"]
    moves: Float64[Tensor, "d rows d"]


@dataclass(frozen=True)
class Head:
    """A model's output matrix, and which of its uses the selection counts.

    Attributes:
        module: the head itself.
        matrix: E, `[vocab, d]`.
        learned: whether E is selected, 1 or 0.
        biased: whether it has a bias that is selected, 1 or 0.
        table: the embedding module, where E is selected and is its matrix too.
    """

    module: nn.Linear
    matrix: Float64[Tensor, "vocab d"]
    learned: int
    biased: int
    table: nn.Embedding | None

    @classmethod
    def of(cls, model: nn.Module, chosen: dict[str, nn.Parameter]) -> "Head":
        """Return a model's head."""
        module, table = hooks.head(model), hooks.embedding(model)
        plain = isinstance(module, nn.Linear) and isinstance(table, nn.Embedding)
        refuse(not plain, f"the head of {type(model).__name__} is no plain matrix: {_INSTEAD}")
        assert isinstance(module, nn.Linear) and isinstance(table, nn.Embedding)
        homes = [m for m in model.modules() for p in m.parameters(False) if p is module.weight]
        refuse(
            not set(homes) <= {module, table},
            f"the head's matrix is used by {len(homes)} modules: {_INSTEAD}",
        )
        selected = {id(parameter) for parameter in chosen.values()}
        learned, biased = id(module.weight) in selected, id(module.bias) in selected
        tied = learned and table.weight is module.weight
        matrix = module.weight.detach().double().cpu()
        return cls(module, matrix, int(learned), int(biased), table if tied else None)

    def end(self, model: nn.Module, ids: Int[Tensor, " seq"]) -> End:
        """Return what a prompt contributes."""
        hidden, slope = read(model, self.module, ids)
        width = len(hidden)
        rows, moves = torch.empty(0, dtype=torch.long), hidden.new_empty(width, 0, width)
        if self.table is not None:
            rows, moves = self._looked_up(model, self.table, ids)
        return End(hidden, slope, rows, moves)

    def _looked_up(
        self, model: nn.Module, table: nn.Embedding, ids: Int[Tensor, " seq"]
    ) -> tuple[Int[Tensor, " rows"], Float64[Tensor, "d rows d"]]:
        """Return the rows that a prompt looks up, and ∂h/∂E of them, by a table of them alone."""
        rows, places = ids.cpu().unique(return_inverse=True)
        small = nn.Parameter(table.weight.detach()[rows.to(table.weight.device)])
        # The row of padding takes no gradient, here as in training.
        padding = [place for place, row in enumerate(rows.tolist()) if row == table.padding_idx]
        with swapped(table, weight=small, padding_idx=padding[0] if padding else None):
            with requiring_grad(model, {"": small}), torch.enable_grad():
                hidden = entering(model, self.module, places)
                basis = torch.eye(len(hidden), dtype=hidden.dtype, device=hidden.device)
                (moves,) = torch.autograd.grad(hidden, small, basis, is_grads_batched=True)
        return rows, moves.double().cpu()

    def norm(self, observed: End, updated: End, inner: Float64[Tensor, "d d"]) -> float:
        """Return ‖K(x′,x)‖_F from products of d columns.

        Args:
            observed: x′.
            updated: x.
            inner: K_h(x′,x).
        """
        left, x, y, right, delta = self._terms(observed, updated, inner)
        squared = (
            ((left.T @ left) * (x.T @ x)).sum()
            + ((right.T @ right) * (y.T @ y)).sum()
            + delta @ delta
            + 2 * ((left.T @ y) * (right.T @ x).T).sum()
            + 2 * delta @ ((left * x).sum(1) + (right * y).sum(1))
        )
        return float(squared.clamp(min=0).sqrt())

    def trace(self, end: End, inner: Float64[Tensor, "d d"]) -> float:
        """Return the trace of K(x,x), which is ‖∂z/∂θ‖_F²; `inner` is K_h(x,x)."""
        left, x, y, right, delta = self._terms(end, end, inner)
        return float((left * x).sum() + (right * y).sum() + delta.sum())

    def _terms(
        self, observed: End, updated: End, inner: Float64[Tensor, "d d"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return L, X, Y, R and δ of K = L Xᵀ + Y Rᵀ + diag(δ)."""
        left = observed.slope[:, None] * self.matrix
        right = updated.slope[:, None] * self.matrix
        x, y = right @ inner.T, torch.zeros_like(left)
        x[observed.rows] += updated.slope[observed.rows, None] * (observed.moves @ updated.hidden).T
        y[updated.rows] = observed.slope[updated.rows, None] * (updated.moves @ observed.hidden).T
        shared = self.learned * float(observed.hidden @ updated.hidden) + self.biased
        return left, x, y, right, shared * observed.slope * updated.slope


def hidden_kernel(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    chosen: dict[str, nn.Parameter],
    estimator: Estimator,
) -> Blocks:
    """Return K_h, `[n, d, n, d]`: the kernel of what enters the head, over what is not the head's.

    A stand-in for the head passes it on, scaled to where φ is nearly linear; what slope φ has there
    is divided out.
    """
    head: Any = hooks.head(model)
    states = [read(model, head, ids)[0] for ids in prompts]
    scale = 1 / max(float(state.abs().max()) for state in states)
    basis = torch.eye(len(states[0]), dtype=states[0].dtype)
    stand_in = Scaled(scale)
    with standing_in(model, head, stand_in):
        selection = selecting(model, chosen)
        if not selection.terms:
            return torch.zeros(len(prompts), len(basis), len(prompts), len(basis)).double()
        slopes = scale * torch.stack([read(model, stand_in, ids)[1] for ids in prompts])
        blocks = estimator(model, [Probe(ids, cotangents=basis) for ids in prompts], selection)
    return blocks / (slopes[:, :, None, None] * slopes)


def selecting(model: nn.Module, chosen: dict[str, nn.Parameter]) -> ParameterSelection:
    """Return the selection of those of the chosen parameters that the model still has."""
    wanted = {id(parameter) for parameter in chosen.values()}
    kept = [re.escape(n) for n, p in effective_parameters(model).items() if id(p) in wanted]
    terms = [f"re:^(?:{'|'.join(kept)})$"] if kept else []
    left = adapter_parameters(model).values()
    whole = bool(left) and all(id(p) in wanted for p in left)
    return ParameterSelection((*terms, *(["lora"] if whole else [])))


class Scaled(nn.Module):
    """Passes its input on, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return the input times the factor."""
        return x * self.factor


def read(
    model: nn.Module, head: nn.Module, ids: Int[Tensor, " seq"]
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " vocab"]]:
    """Return the h that enters the head after a prompt, and the slope D of φ after it."""
    kept: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        kept.extend((inputs[0].detach(), output.detach().requires_grad_()))
        return kept[1]

    with hooks.hooked([(head, cut)]), torch.enable_grad():
        logits = last_logits(model, [ids])
        weights = torch.linspace(1, 2, logits.numel()).to(logits).view_as(logits)
        slope, weighted = (
            torch.autograd.grad(logits, kept[1], w, retain_graph=True)[0].flatten()
            for w in (torch.ones_like(logits), weights)
        )
    alone = torch.allclose(weighted, slope * weights.flatten(), rtol=1e-4)
    refuse(not alone, f"the logits after the head are not each a function of one: {_INSTEAD}")
    return kept[0].flatten().double().cpu(), slope.double().cpu()


def entering(model: nn.Module, head: nn.Module, ids: Int[Tensor, " seq"]) -> Float[Tensor, " d"]:
    """Return the h that enters the head after a prompt, differentiably."""
    kept: list[Tensor] = []
    with hooks.hooked([(head, lambda module, inputs, output: kept.append(inputs[0]))]):
        last_logits(model, [ids])
    return kept[0].flatten()


@contextmanager
def standing_in(model: nn.Module, module: nn.Module, stand_in: nn.Module) -> Generator[None]:
    """Put `stand_in` in the place of a module inside the `with` block."""
    with ExitStack() as stack:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if child is module:
                    stack.enter_context(swapped(parent, **{name: stand_in}))
        yield


@contextmanager
def swapped(holder: nn.Module, **values: Any) -> Generator[None]:
    """Hold attributes at other values inside the `with` block."""
    before = {name: getattr(holder, name) for name in values}
    try:
        for name, value in values.items():
            setattr(holder, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(holder, name, value)
