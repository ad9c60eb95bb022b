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
from .layout import Layout, NoRule

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
    factor: Callable[[Sequence[Float[Tensor, "*out"]]], Factor]


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


def _stacked(gradients: Iterable[Float[Tensor, "n *rest"]]) -> Float[Tensor, "n k *rest"]:
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
    if call.kwargs or call.find(call.args[1]):
        raise NoRule("addmm of other than bias, rows and matrix")
    return _multiplied(call.find(call.args[2]), call.args[1]) + _added(
        call.find(call.args[0]), call.out
    )


def _matmul(call: Call) -> list[Use]:
    """Return the use in y = x W."""
    x, weight = call.args
    if call.find(x) or weight.dim() != 2:
        raise NoRule("matmul of other than rows and matrix")
    return _multiplied(call.find(weight), x)


def _embedding(call: Call) -> list[Use]:
    """Return the use in y = W[ids]; the padding row takes no gradient, as in training."""
    weight = call.weight(1, "weight")
    padding = call.argument(2, "padding_idx")
    if (
        weight is None
        or call.argument(5, "scale_grad_by_freq", False)
        or call.argument(3, "max_norm")
    ):
        raise NoRule("an embedding that scales")
    layout = weight.layout
    ids = layout.lay(call.argument(0, "input").expand(call.out.shape[:-1]).unsqueeze(-1))[..., 0]
    lengths = layout.used(call.out)

    live = None if padding is None else (ids != padding)[:, None, :, None]

    def factor(gs: Sequence[Tensor]) -> Factor:
        g = _stacked(map(layout.lay, gs))
        return Lookup(ids, g if live is None else g * live, lengths)

    return [Use(weight.key, factor)]


def _norm(call: Call, plain: Callable[..., Tensor], names: tuple[str, ...]) -> list[Use]:
    """Return the uses in y = w ∘ x̂ + b, x̂ being the normalised rows."""
    x, shape = call.args[:2]
    if len(shape) != 1:
        raise NoRule("a norm over several dimensions")
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
    first, second = call.args
    weight, x = (call.find(first), second) if call.find(first) else (call.find(second), first)
    if not isinstance(x, Tensor) or call.find(x) or x.shape != call.out.shape:
        raise NoRule("a product of other than rows and a vector")
    return _scaled(weight, x)


def _add(call: Call) -> list[Use]:
    """Return the use in y = x + b."""
    first, second = call.args
    weight, x = (call.find(first), second) if call.find(first) else (call.find(second), first)
    vector = first if call.find(first) else second
    if call.kwargs or call.find(x) or x.shape != call.out.shape or vector.dim() != 1:
        raise NoRule("a sum of other than rows and a vector")
    return _added(weight, call.out)


def _expand(call: Call) -> list[Use]:
    """Return the use of a vector given to every prompt of the batch, as attention sinks are."""
    weight, shape = call.find(call.args[0]), call.args[0].shape
    n = len(weight.layout.lengths) if weight else 0
    spread = [d for d, size in enumerate(shape) if size == 1]
    if weight is None or call.out.dim() != len(shape) or call.out.shape[0] != n or 0 not in spread:
        raise NoRule("a tensor not spread over the batch")
    over = [d for d in spread if d]

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
