"""Records every use of the watched parameters while a model runs."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from .layout import Batch, Gathered, Layout, NoRule, require
from .rules import RULES, Call, Use, Weight, alias


class Recorder(TorchFunctionMode):
    """Sees each operation, and keeps those that a watched parameter goes into.

    Attributes:
        uses: each use, and the place in the autograd graph of what it gave out. A place and not the
            tensor: what is done to the tensor in place afterwards does not move it.
        unruled: the parameters seen in an operation without a rule.
    """

    def __init__(self, watched: Mapping[str, Tensor], batch: Batch) -> None:
        super().__init__()
        self.uses: list[tuple[GradientEdge, Use]] = []
        self.unruled: set[str] = set()
        self._batch = batch
        self._rows: Layout = batch
        self._known = {id(p): Weight((name, None), batch) for name, p in watched.items()}
        self._alive: list[Tensor] = []  # what is known by id must not leave it to another tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what `func` gives, having noted which parameters went into it."""
        named = kwargs or {}
        out = func(*args, **named)
        weights = [w for w in map(self._find, _tensors((*args, *named.values()))) if w]
        if not isinstance(out, Tensor):  # a shape, a dtype: nothing that has a gradient
            self.unruled |= {w.key[0] for w in weights if _tensors((out,))}
            return out
        call = Call(out, args, named, self._find)
        if weights and not torch.is_grad_enabled():
            return out  # the model runs this without a gradient: the parameter's is zero here
        if weights:
            return self._note(func.__name__, call, weights)
        if func.__name__ == "__getitem__":
            self._notice_gathering(call)
        return out

    def _find(self, value: Any) -> Weight | None:
        """Return what a tensor is known as."""
        return self._known.get(id(value)) if isinstance(value, Tensor) else None

    def _note(self, name: str, call: Call, weights: list[Weight]) -> Tensor:
        """Return the operation's output, made a place to take gradients at, and keep its uses."""
        known = alias(name, call, self._rows)
        if known:
            self._known[id(call.out)] = known
            self._alive.append(call.out)
            return call.out
        out, uses = call.out, []
        try:
            if name in RULES:
                out = _own(call.out, len(self._batch.lengths) if name == "embedding" else None)
                uses = RULES[name](replace(call, out=out))
        except NoRule:
            out, uses = call.out, []
        self.uses += [(get_gradient_edge(out), use) for use in uses]
        self.unruled |= {w.key[0] for w in weights} - {use.key[0] for use in uses}
        return out

    def _notice_gathering(self, call: Call) -> None:
        """Keep the rows last picked out of the flattened batch, as an expert's are."""
        source, index = call.args
        flat = len(self._batch.lengths) * self._batch.seq
        if not (isinstance(index, Tensor) and index.dim() == 1 and index.dtype == torch.int64):
            return
        if source.is_floating_point() and source.dim() == 2 and len(source) == flat:
            self._rows = Gathered.of(self._batch, index)


def _own(out: Tensor, n: int | None) -> Tensor:
    """Return an output that a gradient can be taken at: of its own for each of n prompts."""
    if not out.requires_grad:
        out = out.detach().requires_grad_().clone()  # a clone may be written to in place
    if n is None or len(out) == n:
        return out
    require(len(out) == 1, f"rows {tuple(out.shape)} that all of {n} prompts look up")
    return out.expand(n, *out.shape[1:])


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among values, and in lists among them."""
    found: list[Tensor] = []
    for value in values:
        inner = value if isinstance(value, list | tuple) else (value,)
        found += [x for x in inner if isinstance(x, Tensor)]
    return found
