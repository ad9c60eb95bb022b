"""Gradient rules: from the gradient of an operation's output to a factor of its parameter's.

There is one rule per operation, found by the operation's name. It depends on the operation and not
on the module: a weight that is used twice, outside its module, or in a module of another class
needs no rule of its own.

`OperationRecorder` applies them to every operation on a watched parameter while a model runs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .factors import (
    Direct,
    Factor,
    GatheredRows,
    Lookup,
    NoRule,
    Outer,
    PaddedBatch,
    RowLayout,
    require_rule,
)

Key = tuple[str, int | None]


@dataclass(frozen=True)
class Weight:
    """A parameter, a slice of one, or a view with the same gradient (cast, shifted, reshaped).

    Attributes:
        key: the parameter's name, and the index of the slice or `None`.
        layout: the rows that it is applied to.
    """

    key: Key
    layout: RowLayout


@dataclass(frozen=True)
class Use:
    """One use of a parameter in an operation.

    Attributes:
        key: as of `Weight`.
        by_prompt: maps the gradient of one value at the operation's output to what a factor holds
            of it, `[n, ...]`.
        factor: maps that of all k values, `[n, k, ...]`, to a factor of the parameter's gradients.
    """

    key: Key
    by_prompt: Callable[[Tensor], Tensor]
    factor: Callable[[Tensor], Factor]


@dataclass(frozen=True)
class Operation:
    """One call of a torch function.

    Attributes:
        out: its output.
        args: its positional arguments.
        kwargs: its named arguments.
        find: maps an argument to the `Weight` that it is, or to `None`.
    """

    out: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    find: Callable[[Any], Weight | None]

    def weight(self, at: int, name: str) -> Weight | None:
        """Return the parameter passed at position `at` or as `name`, if it is one."""
        return self.find(self.argument(at, name))

    def argument(self, at: int, name: str, default: Any = None) -> Any:
        """Return the argument passed at position `at` or as `name`."""
        return self.args[at] if len(self.args) > at else self.kwargs.get(name, default)


def _matrix_uses(weight: Weight | None, x: Tensor) -> list[Use]:
    """Return the use of a matrix that multiplies the rows x."""
    if weight is None:
        return []
    layout, lengths = weight.layout, weight.layout.row_counts(x)
    a = layout.by_prompt(x.detach())
    return [Use(weight.key, layout.by_prompt, lambda g: Outer(a, g, lengths))]


def added_vector_uses(weight: Weight | None, out: Tensor) -> list[Use]:
    """Return the use of a vector that is added to every row."""
    if weight is None:
        return []
    layout = weight.layout
    layout.by_prompt(out.detach())
    return [Use(weight.key, lambda g: layout.by_prompt(g).sum(1), Direct)]


def _scaling_vector_uses(weight: Weight | None, x: Tensor) -> list[Use]:
    """Return the use of a vector that multiplies every row x, entry by entry."""
    if weight is None:
        return []
    layout, a = weight.layout, weight.layout.by_prompt(x.detach())
    return [Use(weight.key, lambda g: (a * layout.by_prompt(g)).sum(1), Direct)]


def _linear(operation: Operation) -> list[Use]:
    """Return the uses in y = x Wᵀ + b."""
    uses = _matrix_uses(operation.weight(1, "weight"), operation.argument(0, "input"))
    return uses + added_vector_uses(operation.weight(2, "bias"), operation.out)


def _addmm(operation: Operation) -> list[Use]:
    """Return the uses in y = b + x W, as in GPT-2's Conv1D."""
    require_rule(len(operation.args) == 3 and not operation.kwargs, "addmm with alpha or beta")
    bias, x, matrix = operation.args
    require_rule(operation.find(x) is None, "addmm with a weight as its first matrix")
    return _matrix_uses(operation.find(matrix), x) + added_vector_uses(
        operation.find(bias), operation.out
    )


def _matmul(operation: Operation) -> list[Use]:
    """Return the use in y = x W."""
    require_rule(len(operation.args) == 2 and not operation.kwargs, "matmul of named arguments")
    x, matrix = operation.args
    require_rule(
        operation.find(x) is None and matrix.dim() == 2, "matmul of anything but rows and a matrix"
    )
    return _matrix_uses(operation.find(matrix), x)


def _embedding(operation: Operation) -> list[Use]:
    """Return the use in y = W[ids]; the padding row has no gradient, as in training."""
    weight, padding = operation.weight(1, "weight"), operation.argument(2, "padding_idx")
    scaled = operation.argument(3, "max_norm") or operation.argument(5, "scale_grad_by_freq")
    if weight is None or scaled:
        return []
    layout, lengths = weight.layout, weight.layout.row_counts(operation.out)
    ids = layout.by_prompt(
        operation.argument(0, "input").expand(operation.out.shape[:-1]).unsqueeze(-1)
    )[..., 0]
    not_padding = None if padding is None else (ids != padding)[:, None, :, None]

    def factor(g: Float[Tensor, "n k seq width"]) -> Factor:
        return Lookup(ids, g if not_padding is None else g * not_padding, lengths)

    return [Use(weight.key, layout.by_prompt, factor)]


def _norm(operation: Operation, plain: Callable[..., Tensor], names: tuple[str, ...]) -> list[Use]:
    """Return the uses in y = w ∘ x̂ + b, where x̂ are the normalised rows."""
    x, shape = operation.args[:2]
    require_rule(len(shape) == 1, "a norm over several dimensions")
    settings = dict(zip(names, operation.args[2:], strict=False)) | operation.kwargs
    normalised = plain(x.detach(), shape, **{k: v for k, v in settings.items() if k == "eps"})
    uses = _scaling_vector_uses(operation.find(settings.get("weight")), normalised)
    return uses + added_vector_uses(operation.find(settings.get("bias")), operation.out)


def _layer_norm(operation: Operation) -> list[Use]:
    return _norm(operation, F.layer_norm, ("weight", "bias", "eps"))


def _rms_norm(operation: Operation) -> list[Use]:
    return _norm(operation, F.rms_norm, ("weight", "eps"))


def _mul(operation: Operation) -> list[Use]:
    """Return the use in y = w ∘ x."""
    weight, x = _vector_and_rows(operation)
    return _scaling_vector_uses(weight, x)


def _add(operation: Operation) -> list[Use]:
    """Return the use in y = x + b."""
    weight, _ = _vector_and_rows(operation)
    return added_vector_uses(weight, operation.out)


def _vector_and_rows(operation: Operation) -> tuple[Weight | None, Tensor]:
    """Return the vector and the rows among two arguments, in either order."""
    require_rule(len(operation.args) == 2 and not operation.kwargs, "an operation with alpha")
    vector, x = operation.args if operation.find(operation.args[0]) else operation.args[::-1]
    plain = isinstance(x, Tensor) and operation.find(x) is None and x.shape == operation.out.shape
    require_rule(plain and vector.dim() == 1, "anything but rows and a vector")
    return operation.find(vector), x


def _expand(operation: Operation) -> list[Use]:
    """Return the use of a vector expanded over the prompts, as attention sinks are."""
    weight, shape = operation.find(operation.args[0]), operation.args[0].shape
    if weight is None:
        return []
    expanded = operation.out.shape[0] == len(weight.layout.lengths) and operation.out.dim() == len(
        shape
    )
    require_rule(expanded and shape[0] == 1, "a tensor not expanded over the batch")
    summed = [d for d, size in enumerate(shape) if size == 1 and d]

    def by_prompt(g: Tensor) -> Tensor:
        return (g.sum(summed) if summed else g).flatten(1)

    return [Use(weight.key, by_prompt, Direct)]


RULES: dict[str, Callable[[Operation], list[Use]]] = {
    "linear": _linear,
    "addmm": _addmm,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "mm": _matmul,
    "embedding": _embedding,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "mul": _mul,
    "__mul__": _mul,
    "__rmul__": _mul,
    "add": _add,
    "__add__": _add,
    "__radd__": _add,
    "expand": _expand,
}
"""The rule of each operation, by the name of its torch function."""

_CASTS = {"to", "float", "double", "bfloat16", "half", "type_as", "contiguous", "clone"}
_SHAPES = {"reshape", "view", "unsqueeze"}
_SHIFTS = {"add", "__add__", "sub", "__sub__"}


def weight_view(name: str, operation: Operation, rows: RowLayout) -> Weight | None:
    """Return an operation's output as a view of a parameter, if their gradients are the same.

    Args:
        name: the operation's name.
        operation: the operation.
        rows: the rows last gathered, to which a slice (an expert's matrix) is applied.
    """
    weight = operation.find(operation.args[0]) if operation.args else None
    if weight is None:
        return None
    if name in _CASTS or (name in _SHAPES and operation.args[0].dim() == 1):
        return weight
    if name in _SHIFTS and not operation.kwargs and isinstance(operation.args[1], int | float):
        return weight
    if (
        name == "__getitem__"
        and weight.key[1] is None
        and operation.out.dim() == operation.args[0].dim() - 1
    ):
        index = operation.args[1]
        if isinstance(index, int) or (isinstance(index, Tensor) and index.dim() == 0):
            return replace(weight, key=(weight.key[0], int(index)), layout=rows)
    return None


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
