"""Gradients of a model's numbers: of one by one backward pass, and of each sample of a batch.

Those of a batch's samples come from one backward pass too, kept as the factors they are made of. A
matrix that multiplies activations has Σ_t g_t ⊗ a_t as its gradient, from what went into its
module and the gradient with respect to what came out: a batch of one pass gives one such sum for
each sample. Before the factors are trusted they are compared with autograd's own gradient of a
weighted sum over the samples; a model for which they differ, or a parameter for which there is no
rule, gets a backward pass per sample.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .parameters import requiring_grad


def gradients(
    value: Float[Tensor, ""], parameters: Iterable[Tensor], *, retain_graph: bool = False
) -> list[Tensor]:
    """Return ∂value/∂θ, a tensor for every parameter: zeros where the value does not depend on it.

    Args:
        value: a scalar.
        parameters: θ, each requiring a gradient.
        retain_graph: whether to keep the graph for another backward pass.
    """
    tensors = list(parameters)
    if not value.requires_grad:  # it depends on no parameter, an error for autograd
        return [torch.zeros_like(tensor) for tensor in tensors]
    return list(
        torch.autograd.grad(value, tensors, retain_graph=retain_graph, materialize_grads=True)
    )


Forward = Callable[[Sequence[int]], Float[Tensor, "rows k"]]
"""Runs some samples, by their numbers, and returns k values of each."""

_AGREEMENT = {torch.float64: 1e-7, torch.float32: 2e-3}
_AGREEMENT_LOW_PRECISION = 5e-2


@dataclass(frozen=True, eq=False)
class MatrixFactors:
    """∂/∂W = Σ_t left_t ⊗ right_t of each sample, of a matrix `[rows, columns]`."""

    left: Float[Tensor, "b t rows"]
    right: Float[Tensor, "b t columns"]

    def whole(self) -> Float[Tensor, "b rows columns"]:
        """Return the gradients, formed."""
        return self.left.transpose(1, 2) @ self.right

    def inner(self, held: Float[Tensor, "m rows columns"]) -> Float[Tensor, "b m"]:
        """Return the inner products with m matrices."""
        return self.whole().flatten(1) @ held.to(self.left).flatten(1).T

    def projected(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "b p q"]:
        """Return rows · gradient · columnsᵀ, without forming the gradient."""
        left, right = self.left @ rows.to(self.left).T, self.right @ columns.to(self.right).T
        return left.transpose(1, 2) @ right


@dataclass(frozen=True, eq=False)
class LookupFactors:
    """The gradient of a table that is looked up: row `ids[t]` receives `values[t]`."""

    ids: Int[Tensor, "b t"]
    values: Float[Tensor, "b t columns"]
    rows: int

    def whole(self) -> Float[Tensor, "b rows columns"]:
        """Return the gradients, formed."""
        size, _, columns = self.values.shape
        found = self.values.new_zeros(size, self.rows, columns)
        return found.scatter_add_(1, self.ids[..., None].expand_as(self.values), self.values)

    def inner(self, held: Float[Tensor, "m rows columns"]) -> Float[Tensor, "b m"]:
        """Return the inner products with m tables."""
        found = [
            torch.einsum("btc,btc->b", self.values, one.to(self.values)[self.ids]) for one in held
        ]
        return torch.stack(found, 1)

    def projected(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "b p q"]:
        """Return rows · gradient · columnsᵀ, without forming the gradient."""
        left = rows.to(self.values).T[self.ids]
        return left.transpose(1, 2) @ (self.values @ columns.to(self.values).T)


@dataclass(frozen=True, eq=False)
class WholeGradients:
    """Gradients as they are, of a parameter of any shape."""

    values: Float[Tensor, "b ..."]

    def whole(self) -> Float[Tensor, "b ..."]:
        """Return the gradients."""
        return self.values

    def inner(self, held: Float[Tensor, "m ..."]) -> Float[Tensor, "b m"]:
        """Return the inner products with m tensors of the parameter's shape."""
        return self.values.flatten(1) @ held.to(self.values).flatten(1).T

    def projected(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "b p q"]:
        """Return rows · gradient · columnsᵀ of the gradient as a matrix (`as_matrix`)."""
        matrix = self.values.flatten(2) if self.values.ndim > 2 else self.values[:, None]
        return rows.to(matrix) @ matrix @ columns.to(matrix).T


Factors = MatrixFactors | LookupFactors | WholeGradients
Gradients = dict[str, list[Factors]]
"""The uses of each parameter by its name; the gradient is their sum."""

_Use = tuple[nn.Module, Any, Tensor]
"""A module, what it was given, and what it returned."""


def matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """Return a parameter's shape as a matrix: its first axis by the others; a vector is one row."""
    if parameter.ndim < 2:
        return 1, parameter.numel()
    return parameter.shape[0], parameter[0].numel()


class PerSampleFactors:
    """The gradients of samples as factors, in batches where that is right for the model.

    Args:
        model: in evaluation mode.
        chosen: θ by name.

    Attributes:
        batched: whether a batch's factors agreed with autograd; None before the first batch.
    """

    def __init__(self, model: nn.Module, chosen: dict[str, nn.Parameter]) -> None:
        self.model, self.chosen = model, chosen
        self._names = {id(parameter): name for name, parameter in chosen.items()}
        self._owners = [m for m in model.modules() if self._own(m)]
        self.batched: bool | None = None if all(map(_has_rule, self._owners)) else False

    def __call__(self, forward: Forward, rows: Sequence[int]) -> Iterator[Gradients]:
        """Yield the gradients of the samples for each of the k values in turn.

        Args:
            forward: runs the samples that it is given the numbers of.
            rows: their numbers.

        Yields:
            Factors by parameter, the samples along their first axis in the order of `rows`.
        """
        if self.batched is None and len(rows) > 1:
            self.batched = self._agrees(forward, rows)
        yield from self._together(forward, rows) if self.batched else self._apart(forward, rows)

    def _own(self, module: nn.Module) -> dict[str, str]:
        """Return the chosen parameters that a module holds itself: attribute to name."""
        own = module.named_parameters(recurse=False)
        return {key: self._names[id(p)] for key, p in own if id(p) in self._names}

    def _together(self, forward: Forward, rows: Sequence[int]) -> Iterator[Gradients]:
        """Yield the factors of one pass over all samples."""
        with requiring_grad(self.model, self.chosen), torch.enable_grad():
            with self._recording() as uses:
                values = forward(rows)
            for value in values.sum(0):
                yield self._factors(value, uses, again=True)

    def _apart(self, forward: Forward, rows: Sequence[int]) -> Iterator[Gradients]:
        """Yield the gradients of a pass over each sample alone."""
        with requiring_grad(self.model, self.chosen), torch.enable_grad():
            values = [forward([row])[0] for row in rows]
            for column in range(len(values[0])):
                each = [
                    gradients(v[column], self.chosen.values(), retain_graph=True) for v in values
                ]
                stacked = (torch.stack(parts) for parts in zip(*each, strict=True))
                yield {n: [WholeGradients(p)] for n, p in zip(self.chosen, stacked, strict=True)}

    @contextmanager
    def _recording(self) -> Generator[list[_Use]]:
        """Collect what goes into and comes out of the modules that hold parameters.

        Yields:
            The list, filled as they run.
        """
        uses: list[_Use] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            uses.append((module, inputs, output))

        handles = [module.register_forward_hook(keep) for module in self._owners]
        try:
            yield uses
        finally:
            for handle in handles:
                handle.remove()

    def _factors(
        self, value: Tensor, uses: list[tuple[nn.Module, Any, Tensor]], again: bool
    ) -> Gradients:
        """Return the factors of every parameter for one number, a sum over the samples."""
        outputs = [output for _, _, output in uses]
        out = torch.autograd.grad(value, outputs, retain_graph=again, allow_unused=True)
        found: Gradients = {name: [] for name in self.chosen}
        for (module, inputs, _), g in zip(uses, out, strict=True):
            if g is not None:
                for attribute, name in self._own(module).items():
                    found[name].append(_rule(module, attribute, inputs[0].detach(), g.detach()))
        return found

    def _agrees(self, forward: Forward, rows: Sequence[int]) -> bool:
        """Return whether factors are autograd's gradient, of a sum that tells samples apart."""
        with requiring_grad(self.model, self.chosen), torch.enable_grad():
            with self._recording() as uses:
                values = forward(rows)[:, 0]
            weights = torch.linspace(1, -2, len(rows)).to(values)
            if any(not _fits(inputs, output, len(rows)) for _, inputs, output in uses):
                return False
            expected = gradients(values @ weights, self.chosen.values(), retain_graph=True)
            found = self._factors(values.sum(), uses, again=False)
        return all(
            _near(found[name], weights, whole)
            for name, whole in zip(self.chosen, expected, strict=True)
        )


def _near(factors: list[Factors], weights: Tensor, expected: Tensor) -> bool:
    """Return whether the weighted sum of per-sample gradients is what autograd gives."""
    total = torch.zeros_like(expected)
    for each in factors:
        whole = each.whole()
        total += torch.tensordot(weights.to(whole), whole, 1).view_as(expected)
    allowed = _AGREEMENT.get(expected.dtype, _AGREEMENT_LOW_PRECISION)
    scale = max(float(expected.norm()), float(total.norm()), 1e-12)
    return float((total - expected).norm()) <= allowed * scale


def _fits(inputs: Any, output: Any, batch: int) -> bool:
    """Return whether a module saw a batch of samples, one along its first axis each."""
    tensors = [*inputs, output]
    return all(isinstance(t, Tensor) and t.ndim >= 2 and len(t) == batch for t in tensors)


def _has_rule(module: nn.Module) -> bool:
    """Return whether a module's own parameters alone make its output from its one input."""
    return isinstance(module, nn.Linear | Conv1D | nn.Embedding) or not any(
        True for _ in module.children()
    )


def _rule(module: nn.Module, attribute: str, given: Tensor, g: Tensor) -> Factors:
    """Return the factors of a parameter from what went in and the gradient of what came out."""
    if isinstance(module, nn.Embedding):
        live = g if module.padding_idx is None else g * given.ne(module.padding_idx)[..., None]
        return LookupFactors(given, live, module.num_embeddings)
    if isinstance(module, nn.Linear | Conv1D):
        if attribute == "bias":
            return WholeGradients(g.flatten(1, -2).sum(1))
        a, out = given.flatten(1, -2).to(g), g.flatten(1, -2)
        return MatrixFactors(a, out) if isinstance(module, Conv1D) else MatrixFactors(out, a)
    return WholeGradients(_by_vjp(module, attribute, given, g))


def _by_vjp(module: nn.Module, attribute: str, given: Tensor, g: Tensor) -> Tensor:
    """Return the gradients of another module's parameter, the module run again on each sample."""
    parameter = getattr(module, attribute).detach()

    def one(a: Tensor, out: Tensor) -> Tensor:
        def run(p: Tensor) -> Tensor:
            return torch.func.functional_call(module, {attribute: p}, (a[None],))

        pulled: Any = torch.func.vjp(run, parameter)
        return pulled[1](out[None])[0]

    return torch.func.vmap(one)(given, g)
