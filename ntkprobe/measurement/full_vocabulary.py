"""‖K(x′,x)‖_F with every logit of the vocabulary read, exactly and without the V² entries.

The logits are z = φ(E h): the head E maps the hidden state h to V numbers, and φ, a soft cap or
the identity, acts on each of them. With D = φ′ at a prompt, and J_h the Jacobian of h,

    K(x′,x) = D′ (E K_h Eᵀ + E B + B̃ᵀ Eᵀ + (h′·h) I) D,      K_h = J_h(x′) J_h(x)ᵀ, `[d, d]`.

K_h takes d backward passes a prompt where K takes V. The other terms appear if E is among the
selected parameters; B and B̃ if it is also the embedding (tied): the products of the rows that one
prompt looks up with the head of the other, with as many columns as it has tokens.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from .. import estimators, plugins
from ..errors import require
from ..kernel import Blocks, Estimator, Probe, Table, blocks_by_selection, last_logits
from ..models import architecture
from ..models.logits import check_logits
from ..models.parameters import (
    ParameterSelection,
    adapter_parameters,
    effective_parameters,
    requiring_grad,
)
from ..models.replacement import replace_attributes, replace_module
from ..progress import progress

ROWS_AT_A_TIME = 2**14
"""Rows of K_h at a time, which take 2 GiB."""
_DIRECTIONS_AT_A_TIME = 64  # of the head's input, in one batched backward pass
_ALTERNATIVE = "take random probes, which read any model"

HiddenKernels = Callable[
    [nn.Module, Sequence[Int[Tensor, " _"]], Sequence[dict[str, nn.Parameter]], Estimator],
    list[Blocks],
]


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
        estimator: what computes K_h, the kernel of the head's input, by its
            name or with its settings.

    Returns:
        `[n, n]` float64, rows observed x′, columns updated x. Takes d backward passes a prompt,
        again for each chunk of prompts whose K_h fit into memory, and 4 V·d² multiply-adds a pair.
        A model or prompt that cannot be measured, a head that is no plain matrix or is
        used elsewhere than as a tied embedding, and an unknown estimator or selection are each a
        `UserError`.
    """
    return full_vocabulary_by_selection(model, prompts, [parameters], estimator=estimator)[0].norms


@dataclass(frozen=True)
class FullVocabulary:
    """What is read of all logits, over one selection of parameters.

    Attributes:
        norms: ‖K(x′,x)‖_F, `[n, n]`, rows observed x′.
        gradients: ‖∂z/∂θ‖_F of each prompt, `[n]`: the root of the trace of K(x,x).
    """

    norms: Table
    gradients: Float64[Tensor, " n"]


def full_vocabulary_by_selection(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    selections: Sequence[str | ParameterSelection],
    *,
    estimator: str | Estimator = "gram",
    kernels: HiddenKernels | None = None,
) -> list[FullVocabulary]:
    """Return what is read of all logits over each of several selections, from one pass over all.

    Args:
        model: the model.
        prompts: token ids of each prompt, nothing padded.
        selections: of parameters; one may contain another.
        estimator: what computes K_h, by its name or with its settings; one that cannot tell
            selections apart runs for each.
        kernels: returns K_h of some prompts; `hidden_kernels` by default.

    Returns:
        What is read over each selection, in their order. Errors are those of
        `full_vocabulary_norms`; at least one selection is required.
    """
    method = plugins.instance(estimators, estimator)
    check_logits(model, prompts)
    require(selections, "no selections: give at least one, such as last:2+head")
    chosen = [ParameterSelection.parse(each).parameters(model) for each in selections]
    heads = [Head.of(model, each) for each in chosen]
    # Selections differ in a prompt's terms only by whether E's lookups count.
    by_table = {head.table: head for head in heads}
    terms = {table: _all_terms(model, head, prompts) for table, head in by_table.items()}
    norms = torch.zeros(len(heads), len(prompts), len(prompts), dtype=torch.float64)
    traces = torch.zeros(len(heads), len(prompts), dtype=torch.float64)
    at_once = max(1, ROWS_AT_A_TIME // (2 * heads[0].matrix.shape[1]))
    for pair in combinations_with_replacement(torch.arange(len(prompts)).split(at_once), 2):
        rows = torch.cat(pair).unique().tolist()
        some = [prompts[row] for row in rows]
        inner = (kernels or hidden_kernels)(model, some, chosen, method)
        for s, (head, blocks) in enumerate(zip(heads, inner, strict=True)):
            own = terms[head.table]
            for (i, a), (j, b) in combinations_with_replacement(enumerate(rows), 2):
                norms[s, a, b] = norms[s, b, a] = head.norm(own[a], own[b], blocks[i, :, j])
            for i, a in enumerate(rows):
                traces[s, a] = head.trace(own[a], blocks[i, :, i])
    roots = traces.clamp(min=0).sqrt()
    return [FullVocabulary(*each) for each in zip(norms, roots, strict=True)]


def _all_terms(
    model: nn.Module, head: "Head", prompts: Sequence[Int[Tensor, " _"]]
) -> list["PromptTerms"]:
    """Return the terms of every prompt, with progress shown where they take long."""
    quick = head.table is None
    bar = progress(prompts, desc="embedding lookups", unit="prompt", leave=False, disable=quick)
    return [head.prompt_terms(model, ids) for ids in bar]


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
        `[n]` float64. Errors are those of `full_vocabulary_norms`.
    """
    method = plugins.instance(estimators, estimator)
    check_logits(model, prompts)
    chosen = ParameterSelection.parse(parameters).parameters(model)
    head = Head.of(model, chosen)
    squares = [
        head.trace(
            head.prompt_terms(model, ids),
            hidden_kernels(model, [ids], [chosen], method)[0][0, :, 0],
        )
        for ids in prompts
    ]
    return torch.tensor(squares, dtype=torch.float64).clamp(min=0).sqrt()


@dataclass(frozen=True)
class PromptTerms:
    """The terms of one prompt in the kernel's formula.

    Attributes:
        hidden: h, the input of the head.
        slope: D, the derivative of each logit by the head's output; 1 without a soft cap.
        rows: the rows of E that the prompt looks up; none if E is not a selected embedding.
        jacobian: ∂h/∂E of those rows.
    """

    hidden: Float64[Tensor, " d"]
    slope: Float64[Tensor, " vocab"]
    rows: Int[Tensor, " rows"]
    jacobian: Float64[Tensor, "d rows d"]


@dataclass(frozen=True)
class Head:
    """A model's output matrix, and which of its uses the selection includes.

    Attributes:
        module: the head itself.
        matrix: E, `[vocab, d]`.
        selected_matrix: whether E is selected, 1 or 0.
        selected_bias: whether the head's bias is selected, 1 or 0.
        table: the embedding module, if E is selected and tied to it.
    """

    module: nn.Linear
    matrix: Float64[Tensor, "vocab d"]
    selected_matrix: int
    selected_bias: int
    table: nn.Embedding | None

    @classmethod
    def of(cls, model: nn.Module, chosen: dict[str, nn.Parameter]) -> "Head":
        """Return a model's head."""
        module, table = architecture.head(model), architecture.embedding(model)
        plain = isinstance(module, nn.Linear) and isinstance(table, nn.Embedding)
        require(plain, f"the head of {type(model).__name__} is no plain matrix: {_ALTERNATIVE}")
        assert isinstance(module, nn.Linear) and isinstance(table, nn.Embedding)
        holders = [m for m in model.modules() for p in m.parameters(False) if p is module.weight]
        require(
            set(holders) <= {module, table},
            f"the head's matrix is used by {len(holders)} modules: {_ALTERNATIVE}",
        )
        selected = {id(parameter) for parameter in chosen.values()}
        selected_matrix, selected_bias = id(module.weight) in selected, id(module.bias) in selected
        tied = selected_matrix and table.weight is module.weight
        matrix = module.weight.detach().double().cpu()
        return cls(
            module, matrix, int(selected_matrix), int(selected_bias), table if tied else None
        )

    def prompt_terms(self, model: nn.Module, ids: Int[Tensor, " seq"]) -> PromptTerms:
        """Return the terms of one prompt."""
        hidden, slope = head_state(model, self.module, ids)
        width = len(hidden)
        rows, jacobian = torch.empty(0, dtype=torch.long), hidden.new_empty(width, 0, width)
        if self.table is not None:
            rows, jacobian = self._lookup_jacobian(model, self.table, ids)
        return PromptTerms(hidden, slope, rows, jacobian)

    def _lookup_jacobian(
        self, model: nn.Module, table: nn.Embedding, ids: Int[Tensor, " seq"]
    ) -> tuple[Int[Tensor, " rows"], Float64[Tensor, "d rows d"]]:
        """Return the rows of E that a prompt looks up, and ∂h/∂E of those rows."""
        rows, places = ids.cpu().unique(return_inverse=True)
        small = nn.Parameter(table.weight.detach()[rows.to(table.weight.device)])
        # The padding row has no gradient, as in training.
        padding = [place for place, row in enumerate(rows.tolist()) if row == table.padding_idx]
        with replace_attributes(table, weight=small, padding_idx=padding[0] if padding else None):
            with requiring_grad(model, {"": small}), torch.enable_grad():
                hidden = head_input(model, self.module, places)
                basis = torch.eye(len(hidden), dtype=hidden.dtype, device=hidden.device)
                each = [
                    torch.autograd.grad(
                        hidden, small, some, retain_graph=True, is_grads_batched=True
                    )[0]
                    for some in basis.split(_DIRECTIONS_AT_A_TIME)
                ]
        return rows, torch.cat(each).double().cpu()

    def norm(
        self, observed: PromptTerms, updated: PromptTerms, inner: Float64[Tensor, "d d"]
    ) -> float:
        """Return ‖K(x′,x)‖_F from products of matrices with d columns.

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

    def trace(self, own: PromptTerms, inner: Float64[Tensor, "d d"]) -> float:
        """Return the trace of K(x,x), which is ‖∂z/∂θ‖_F²; `inner` is K_h(x,x)."""
        left, x, y, right, delta = self._terms(own, own, inner)
        return float((left * x).sum() + (right * y).sum() + delta.sum())

    def _terms(
        self, observed: PromptTerms, updated: PromptTerms, inner: Float64[Tensor, "d d"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return L, X, Y, R and δ of K = L Xᵀ + Y Rᵀ + diag(δ)."""
        left = observed.slope[:, None] * self.matrix
        right = updated.slope[:, None] * self.matrix
        x, y = right @ inner.T, torch.zeros_like(left)
        x[observed.rows] += (
            updated.slope[observed.rows, None] * (observed.jacobian @ updated.hidden).T
        )
        y[updated.rows] = (
            observed.slope[updated.rows, None] * (updated.jacobian @ observed.hidden).T
        )
        shared = self.selected_matrix * float(observed.hidden @ updated.hidden) + self.selected_bias
        return left, x, y, right, shared * observed.slope * updated.slope


def hidden_kernels(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    chosen: Sequence[dict[str, nn.Parameter]],
    estimator: Estimator,
) -> list[Blocks]:
    """Return K_h, `[n, d, n, d]`, over each selection's parameters below the head.

    K_h is the kernel of the head's input. A scaled identity replaces the head; φ is nearly linear
    at the scaled values, and its slope there is divided out.
    """
    head: Any = architecture.head(model)
    states = [head_state(model, head, ids)[0] for ids in prompts]
    scale = 1 / max(float(state.abs().max()) for state in states)
    basis = torch.eye(len(states[0]), dtype=states[0].dtype)
    scaled = ScaledIdentity(scale, head)
    probes = [Probe(ids, cotangents=basis) for ids in prompts]
    with replace_module(model, head, scaled):
        selections = [remaining_selection(model, each) for each in chosen]
        slopes = scale * torch.stack([head_state(model, scaled, ids)[1] for ids in prompts])
        filled = [selection for selection in selections if selection.terms]
        blocks = blocks_by_selection(estimator, model, probes, filled)
    none = torch.zeros(len(prompts), len(basis), len(prompts), len(basis)).double()
    found = [blocks[str(each)] if each.terms else none for each in selections]
    return [each / (slopes[:, :, None, None] * slopes) for each in found]


def remaining_selection(model: nn.Module, chosen: dict[str, nn.Parameter]) -> ParameterSelection:
    """Return the selection of the chosen parameters that the model still has."""
    wanted = {id(parameter) for parameter in chosen.values()}
    names = [re.escape(n) for n, p in effective_parameters(model).items() if id(p) in wanted]
    terms = [f"re:^(?:{'|'.join(names)})$"] if names else []
    left = adapter_parameters(model).values()
    whole = bool(left) and all(id(p) in wanted for p in left)
    return ParameterSelection((*terms, *(["lora"] if whole else [])))


class ScaledIdentity(nn.Module):
    """Multiplies its input by a factor, in the place of a head."""

    def __init__(self, factor: float, head: nn.Linear) -> None:
        super().__init__()
        self.factor = factor
        self.weight = head.weight.detach()[:0]  # Mamba asks its head for the dtype; no parameter

    def forward(self, x: Tensor) -> Tensor:
        """Return the input times the factor."""
        return x * self.factor


def head_state(
    model: nn.Module, head: nn.Module, ids: Int[Tensor, " seq"]
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " vocab"]]:
    """Return the head's input h at a prompt's last position, and the slope D of φ."""
    captured: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        captured.extend((inputs[0].detach(), output.detach().requires_grad_()))
        return captured[1]

    with architecture.hooked([(head, cut)]), torch.enable_grad():
        logits = last_logits(model, [ids])
        weights = torch.linspace(1, 2, logits.numel()).to(logits).view_as(logits)
        slope, weighted = (
            torch.autograd.grad(logits, captured[1], w, retain_graph=True)[0].flatten()
            for w in (torch.ones_like(logits), weights)
        )
    alone = torch.allclose(weighted, slope * weights.flatten(), rtol=1e-4)
    require(alone, f"a logit depends on several of the head's outputs: {_ALTERNATIVE}")
    return captured[0].flatten().double().cpu(), slope.double().cpu()


def head_input(model: nn.Module, head: nn.Module, ids: Int[Tensor, " seq"]) -> Float[Tensor, " d"]:
    """Return the head's input h at a prompt's last position, differentiably."""
    captured: list[Tensor] = []
    with architecture.hooked([(head, lambda module, inputs, output: captured.append(inputs[0]))]):
        last_logits(model, [ids])
    return captured[0].flatten()
