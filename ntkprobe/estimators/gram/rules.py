"""What an operation on a parameter makes of its output's gradient: one small rule per operation.

A rule is found by the operation's name and sees the operation, not the module: a weight that is
used twice, outside its module, or in a module of another name needs no rule of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .factors import Direct, Factor, Lookup, Outer
from .layout import Layout, require

Key = tuple[str, int | None]


@dataclass(frozen=True)
class Weight:
    """A parameter, a slice of one, or what has the same gradient (cast, shifted, reshaped).

    `key` is the parameter's name and the slice's number; `layout` the rows it is applied to.
    """

    key: Key
    layout: Layout


@dataclass(frozen=True)
class Use:
    """One use of a parameter; `factor` takes the k gradients of what it gave out to its factor."""

    key: Key
    factor: Callable[[Sequence[Tensor]], Factor]


@dataclass(frozen=True)
class Call:
    """One operation: what went in and came out, and which of its tensors are parameters."""

    out: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    find: Callable[[Any], Weight | None]

    def weight(self, at: int, name: str) -> Weight | None:
        """Return the parameter given as argument number `at` or as `name`."""
        return self.find(self.argument(at, name))

    def argument(self, at: int, name: str, default: Any = None) -> Any:
        """Return argument number `at`, which may be given as `name`."""
        return self.args[at] if len(self.args) > at else self.kwargs.get(name, default)


def _stacked(gradients: Iterable[Float[Tensor, "n ..."]]) -> Float[Tensor, "n k ..."]:
    """Return the gradients of the k values, prompts first."""
    return torch.stack(list(gradients), 1)


def _multiplied(weight: Weight | None, x: Tensor) -> list[Use]:
    """Return the use of a matrix that multiplies the rows x."""
    if weight is None:
        return []
    layout, a, lengths = weight.layout, weight.layout.lay(x.detach()), weight.layout.used(x)
    return [Use(weight.key, lambda gs: Outer(a, _stacked(map(layout.lay, gs)), lengths))]


def _added(weight: Weight | None, out: Tensor) -> list[Use]:
    """Return the use of a vector that is added to every row."""
    if weight is None:
        return []
    layout = weight.layout
    layout.lay(out.detach())
    return [Use(weight.key, lambda gs: Direct(_stacked(layout.lay(g).sum(1) for g in gs)))]


def _scaled(weight: Weight | None, x: Tensor) -> list[Use]:
    """Return the use of a vector that multiplies every row x, entry by entry."""
    if weight is None:
        return []
    layout, a = weight.layout, weight.layout.lay(x.detach())
    return [Use(weight.key, lambda gs: Direct(_stacked((a * layout.lay(g)).sum(1) for g in gs)))]


def _linear(call: Call) -> list[Use]:
    """Return the uses in y = x Wᵀ + b."""
    uses = _multiplied(call.weight(1, "weight"), call.argument(0, "input"))
    return uses + _added(call.weight(2, "bias"), call.out)


def _addmm(call: Call) -> list[Use]:
    """Return the uses in y = b + x W, as in GPT-2's Conv1D."""
    require(len(call.args) == 3 and not call.kwargs, "addmm scaled")
    bias, x, matrix = call.args
    require(call.find(x) is None, "addmm of a weight in the place of the rows")
    return _multiplied(call.find(matrix), x) + _added(call.find(bias), call.out)


def _matmul(call: Call) -> list[Use]:
    """Return the use in y = x W."""
    require(len(call.args) == 2 and not call.kwargs, "matmul of named arguments")
    x, matrix = call.args
    require(call.find(x) is None and matrix.dim() == 2, "matmul of other than rows and a matrix")
    return _multiplied(call.find(matrix), x)


def _embedding(call: Call) -> list[Use]:
    """Return the use in y = W[ids]; the padding row takes no gradient, as in training."""
    weight, padding = call.weight(1, "weight"), call.argument(2, "padding_idx")
    scaled = call.argument(3, "max_norm") or call.argument(5, "scale_grad_by_freq")
    if weight is None or scaled:
        return []
    layout, lengths = weight.layout, weight.layout.used(call.out)
    ids = layout.lay(call.argument(0, "input").expand(call.out.shape[:-1]).unsqueeze(-1))[..., 0]
    live = None if padding is None else (ids != padding)[:, None, :, None]

    def factor(gs: Sequence[Tensor]) -> Factor:
        g = _stacked(map(layout.lay, gs))
        return Lookup(ids, g if live is None else g * live, lengths)

    return [Use(weight.key, factor)]


def _norm(call: Call, plain: Callable[..., Tensor], names: tuple[str, ...]) -> list[Use]:
    """Return the uses in y = w ∘ x̂ + b, x̂ being the normalised rows."""
    x, shape = call.args[:2]
    require(len(shape) == 1, "a norm over several dimensions")
    settings = dict(zip(names, call.args[2:], strict=False)) | call.kwargs
    normalised = plain(x.detach(), shape, **{k: v for k, v in settings.items() if k == "eps"})
    uses = _scaled(call.find(settings.get("weight")), normalised)
    return uses + _added(call.find(settings.get("bias")), call.out)


def _layer_norm(call: Call) -> list[Use]:
    """Return the uses in a LayerNorm."""
    return _norm(call, F.layer_norm, ("weight", "bias", "eps"))


def _rms_norm(call: Call) -> list[Use]:
    """Return the use in torch's own RMSNorm."""
    return _norm(call, F.rms_norm, ("weight", "eps"))


def _mul(call: Call) -> list[Use]:
    """Return the use in y = w ∘ x."""
    weight, x = _with_a_vector(call)
    return _scaled(weight, x)


def _add(call: Call) -> list[Use]:
    """Return the use in y = x + b."""
    weight, _ = _with_a_vector(call)
    return _added(weight, call.out)


def _with_a_vector(call: Call) -> tuple[Weight | None, Tensor]:
    """Return the vector and the rows that an operation takes, in either order."""
    require(len(call.args) == 2 and not call.kwargs, "an operation scaled")
    vector, x = call.args if call.find(call.args[0]) else call.args[::-1]
    plain = isinstance(x, Tensor) and call.find(x) is None and x.shape == call.out.shape
    require(plain and vector.dim() == 1, "other than rows and a vector")
    return call.find(vector), x


def _expand(call: Call) -> list[Use]:
    """Return the use of a vector given to every prompt of the batch, as attention sinks are."""
    weight, shape = call.find(call.args[0]), call.args[0].shape
    if weight is None:
        return []
    every = call.out.shape[0] == len(weight.layout.lengths) and call.out.dim() == len(shape)
    require(every and shape[0] == 1, "a tensor not spread over the batch")
    over = [d for d, size in enumerate(shape) if size == 1 and d]

    def factor(gs: Sequence[Tensor]) -> Factor:
        return Direct(_stacked((g.sum(over) if over else g).flatten(1) for g in gs))

    return [Use(weight.key, factor)]


RULES: dict[str, Callable[[Call], list[Use]]] = {
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
"""Operations whose output is a use."""

_CASTS = {"to", "float", "double", "bfloat16", "half", "type_as", "contiguous", "clone"}
_SHAPES = {"reshape", "view", "unsqueeze"}
_SHIFTS = {"add", "__add__", "sub", "__sub__"}


def alias(name: str, call: Call, rows: Layout) -> Weight | None:
    """Return what an operation's output is known as, where its gradient is that of a parameter.

    Args:
        name: the operation's name.
        call: the operation.
        rows: the rows last gathered, which is what a slice (an expert's matrix) is applied to.
    """
    weight = call.find(call.args[0]) if call.args else None
    if weight is None:
        return None
    if name in _CASTS or (name in _SHAPES and call.args[0].dim() == 1):
        return weight
    if name in _SHIFTS and not call.kwargs and isinstance(call.args[1], int | float):
        return weight
    if name == "__getitem__" and weight.key[1] is None and call.out.dim() == call.args[0].dim() - 1:
        index = call.args[1]
        if isinstance(index, int) or (isinstance(index, Tensor) and index.dim() == 0):
            return replace(weight, key=(weight.key[0], int(index)), layout=rows)
    return None
