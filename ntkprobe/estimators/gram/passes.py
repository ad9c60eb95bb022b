"""A tile of prompts on its way down a model.

A forward pass kept as its residual streams; then one stage at a time, from the logits to the
embeddings, run again and differentiated.

A stage is what follows the last block, each block, or what comes before the first. Only the stage
at hand has activations and gradients in memory, so that nothing grows with depth times prompts.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...kernel import last_logits
from ...models.architecture import hidden_state
from ...models.batching import forgetting_lengths
from ...models.parameters import requiring_grad
from ...models.validation import finite
from .factors import Factor, Outer, narrowed, trimmed
from .layout import Batch
from .precision import computing_in
from .recording import Recorder
from .rules import Key
from .standing import standing_in

Factors = dict[Key, list[Factor]]


VALUES_AT_A_TIME = {"cpu": 2**18, "cuda": 2**26}  # of a stage's output, times cotangents


@runtime_checkable
class Reading(Protocol):
    """A prompt, and the values that are read of its logits."""

    @property
    def input_ids(self) -> Tensor:
        """The prompt."""
        ...

    def read(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " k"]:
        """Return the values."""
        ...


@dataclass(frozen=True)
class Route:
    """How a model is gone down.

    Attributes:
        model: the model, in evaluation mode.
        blocks: the list of its blocks, a stage each; `None` makes the whole model one stage.
        dtype: what to compute in.
        columns: the vocabulary ids that any prompt reads, sorted; `None` where all may be.
    """

    model: nn.Module
    blocks: nn.ModuleList | None
    dtype: torch.dtype
    columns: Int[Tensor, " some"] | None = None


class Pass:
    """One model and a tile of prompts, going down by stages.

    Stages are numbered as the blocks that they are, from 0; what follows the last block is `depth`,
    what comes before the first -1. Without `blocks`, the whole model is one stage.
    """

    def __init__(
        self, route: Route, probes: Sequence[Reading], watched: dict[str, nn.Parameter]
    ) -> None:
        self.unruled: set[str] = set()
        self._route, self._probes, self._watched = route, probes, watched
        self._model, self._blocks, self._dtype = route.model, route.blocks, route.dtype
        self._prompts = [probe.input_ids for probe in probes]
        self._vocabulary = 0
        self._streams: list[Tensor] = []
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
        self._cotangents: Tensor | None = None
        self._below: Tensor | None = None
        if route.blocks is not None:
            self._remember(route.blocks)

    @property
    def stages(self) -> list[int]:
        """The stages from the top down."""
        return list(range(len(self._calls), -2, -1)) if self._blocks is not None else [0]

    def run(self, stage: int) -> Factors:
        """Return the factors of the watched parameters that a stage uses."""
        lengths = tuple(map(len, self._prompts))
        recorder = Recorder(self._watched, Batch(lengths, max(lengths)))
        with requiring_grad(self._model, {}), torch.enable_grad(), self._at_hand(stage):
            with recorder:
                source, output = self._stage(stage)
            self.unruled |= recorder.unruled
            ends = [edge for edge, _ in recorder.uses]
            gradients = self._gradients(source, output, ends)
        found: Factors = {}
        for (_, use), g in zip(recorder.uses, gradients, strict=True):
            if g is not None and use.key[0] not in self.unruled:
                found.setdefault(use.key, []).append(self._smallest(use.factor(g), stage))
        return found

    def descend(self) -> None:
        """Take the cotangents from the stage last run to the one below it."""
        self._cotangents, self._below = self._below, None

    def _at_hand(self, stage: int) -> ExitStack:
        """Return the context in which a stage's parameters are in the dtype computed in."""
        stack = ExitStack()
        stack.enter_context(forgetting_lengths(self._model))
        inside = self._blocks is not None and 0 <= stage < len(self._blocks)
        if inside:
            stack.enter_context(computing_in(self._dtype, [self._blocks[stage]]))  # type: ignore[index]
        else:
            stack.enter_context(computing_in(self._dtype, [self._model], apart=self._blocks))
        return stack

    def _remember(self, blocks: nn.ModuleList) -> None:
        """Run the model forward, keeping what enters each block and leaves the last."""
        originals = list(blocks)
        with (
            torch.no_grad(),
            self._at_hand(-1),
            standing_in(blocks, lambda index: partial(self._kept, originals[index])),
        ):
            last_logits(self._model, self._prompts)

    def _kept(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return a block's output, having kept what entered it and what else it was given."""
        hidden, *rest = args or (kwargs.pop("hidden_states"),)
        self._streams[-1:] = [hidden.detach().clone()]
        with computing_in(self._dtype, [block]):
            output = block(hidden, *rest, **kwargs)
        wrapped = output if isinstance(output, tuple) else None
        self._calls.append((tuple(rest), kwargs, wrapped))
        self._streams.append(hidden_state(output).detach())
        return output

    def _stage(self, stage: int) -> tuple[Tensor | None, Tensor]:
        """Return what enters a stage, if a residual stream does, and what leaves it."""
        if self._blocks is None:
            return None, self._read()
        if stage < 0:
            return None, self._embedded(self._blocks)
        source = self._streams[stage].detach().requires_grad_()
        if stage == len(self._blocks):
            with standing_in(self._blocks, lambda index: partial(self._constant, index, source)):
                return source, self._read()
        args, kwargs, _ = self._calls[stage]
        return source, hidden_state(self._blocks[stage](source, *args, **kwargs))

    def _constant(self, index: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return `hidden` as a block gives its output, whatever enters it."""
        output = self._calls[index][2]
        return hidden if output is None else (hidden, *output[1:])

    def _embedded(self, blocks: nn.ModuleList) -> Tensor:
        """Return what enters the first block."""
        found: list[Tensor] = []

        def passing(index: int, *args: Any, **kwargs: Any) -> Any:
            found.append(args[0] if args else kwargs["hidden_states"])
            return self._constant(index, found[0].detach())

        with standing_in(blocks, lambda index: partial(passing, index)):
            last_logits(self._model, self._prompts)
        return found[0]

    def _read(self) -> Float[Tensor, "n k"]:
        """Return the values that the probes read."""
        logits = finite(last_logits(self._model, self._prompts))
        self._vocabulary = logits.shape[1]
        return torch.stack([probe.read(z) for probe, z in zip(self._probes, logits, strict=True)])

    def _gradients(
        self, source: Tensor | None, output: Tensor, ends: Sequence[Any]
    ) -> Sequence[Sequence[Tensor] | None]:
        """Return the gradients of the k values at each of `ends`, and keep those at the source."""
        cotangents = self._cotangents
        if cotangents is None:  # the top: the values themselves
            n, k = output.shape
            eye = torch.eye(k, dtype=output.dtype, device=output.device)
            cotangents = eye[:, None].expand(k, n, k)
        inputs = list(ends) if source is None else [source, *ends]
        if not inputs or not output.requires_grad:
            return [None] * len(ends)
        found = vjps(output, inputs, cotangents)
        if source is not None:
            self._below = torch.stack(tuple(found[0])) if found[0] is not None else None
        return found if source is None else found[1:]

    def _smallest(self, factor: Factor, stage: int) -> Factor:
        """Return a factor without what the last position alone being read makes zero."""
        depth = len(self._blocks) if self._blocks is not None else 0
        if stage < depth - 1:
            return factor
        columns = self._route.columns
        if stage == depth and columns is not None and isinstance(factor, Outer):
            if factor.g.shape[3] == self._vocabulary:
                factor = narrowed(factor, columns.to(factor.g.device))
        return trimmed(factor)


def vjps(
    output: Float[Tensor, "..."], inputs: Sequence[Any], cotangents: Float[Tensor, "k ..."]
) -> list[Sequence[Tensor] | None]:
    """Return the k gradients at each input, `None` where the output does not depend on it.

    Several at a time where that is little work each, and one by one where it is much: batched,
    large tensors take longer to move than they save.
    """
    room = VALUES_AT_A_TIME.get(output.device.type, VALUES_AT_A_TIME["cpu"])
    step = max(1, room // output.numel())
    found: list[list[Tensor | None]] = [[] for _ in inputs]
    for i in range(0, len(cotangents), step):
        some = cotangents[i : i + step]
        batched = len(some) > 1
        gradients = torch.autograd.grad(
            output,
            inputs,
            some if batched else some[0],
            retain_graph=i + step < len(cotangents),
            is_grads_batched=batched,
            allow_unused=True,
        )
        for kept, g in zip(found, gradients, strict=True):
            kept.extend(g.unbind() if batched and g is not None else [g])
    return [None if f[0] is None else f for f in found]  # type: ignore[misc]
