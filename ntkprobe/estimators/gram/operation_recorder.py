"""Records every operation on a watched parameter while a model runs."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from .gradient_rules import RULES, Operation, Use, Weight, weight_view
from .row_layout import GatheredRows, NoRule, PaddedBatch, RowLayout, require_rule


class OperationRecorder(TorchFunctionMode):
    """Intercepts torch functions and records those that take a watched parameter.

    Attributes:
        uses: each use, and its output's edge in the autograd graph. An edge instead of the tensor,
            because later in-place operations on the tensor do not change the edge.
        no_rule: the parameters used in an operation without a gradient rule.
    """

    def __init__(self, watched: Mapping[str, Tensor], batch: PaddedBatch) -> None:
        super().__init__()
        self.uses: list[tuple[GradientEdge, Use]] = []
        self.no_rule: set[str] = set()
        self._batch = batch
        self._rows: RowLayout = batch
        self._weights = {id(p): Weight((name, None), batch) for name, p in watched.items()}
        self._references: list[Tensor] = []  # keeps the ids of views in `_weights` from reuse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what `func` returns, having recorded the parameters among its arguments."""
        named = kwargs or {}
        out = func(*args, **named)
        weights = [w for w in map(self._find, _tensors((*args, *named.values()))) if w]
        if not isinstance(out, Tensor):  # a shape or a dtype, which has no gradient
            self.no_rule |= {w.key[0] for w in weights if _tensors((out,))}
            return out
        operation = Operation(out, args, named, self._find)
        if weights and not torch.is_grad_enabled():
            return out  # run under no_grad by the model itself: the parameter's gradient is zero
        if weights:
            return self._record(func.__name__, operation, weights)
        if func.__name__ == "__getitem__":
            self._record_gather(operation)
        return out

    def _find(self, value: Any) -> Weight | None:
        return self._weights.get(id(value)) if isinstance(value, Tensor) else None

    def _record(self, name: str, operation: Operation, weights: list[Weight]) -> Tensor:
        """Return the operation's output in a differentiable form, and record its uses."""
        view = weight_view(name, operation, self._rows)
        if view:
            self._weights[id(operation.out)] = view
            self._references.append(operation.out)
            return operation.out
        out, uses = operation.out, []
        try:
            if name in RULES:
                n = len(self._batch.lengths) if name == "embedding" else None
                out = _differentiable(operation.out, n)
                uses = RULES[name](replace(operation, out=out))
        except NoRule:
            out, uses = operation.out, []
        self.uses += [(get_gradient_edge(out), use) for use in uses]
        self.no_rule |= {w.key[0] for w in weights} - {use.key[0] for use in uses}
        return out

    def _record_gather(self, operation: Operation) -> None:
        """Record the rows last selected from the flattened batch, as an expert's are."""
        source, index = operation.args
        flat = len(self._batch.lengths) * self._batch.seq
        if not (isinstance(index, Tensor) and index.dim() == 1 and index.dtype == torch.int64):
            return
        if source.is_floating_point() and source.dim() == 2 and len(source) == flat:
            self._rows = GatheredRows.of(self._batch, index)


def _differentiable(out: Tensor, n: int | None) -> Tensor:
    """Return an output that a gradient can be taken at, with a row for each of n prompts."""
    if not out.requires_grad:
        out = out.detach().requires_grad_().clone()  # a clone allows in-place operations
    if n is None or len(out) == n:
        return out
    require_rule(len(out) == 1, f"rows {tuple(out.shape)} that all of {n} prompts look up")
    return out.expand(n, *out.shape[1:])


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among values, and in lists or tuples among them."""
    found: list[Tensor] = []
    for value in values:
        inner = value if isinstance(value, list | tuple) else (value,)
        found += [x for x in inner if isinstance(x, Tensor)]
    return found
