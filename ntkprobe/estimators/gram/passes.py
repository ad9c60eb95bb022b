"""A tile of prompts on its way down a model: a forward pass kept as its residual streams, then one
stage at a time, from the logits to the embeddings, run again and differentiated.

A stage is what follows the last block, each block, or what comes before the first. Only the stage
at hand has activations and gradients in memory, so that nothing grows with depth times prompts.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ...checks import finite
from ...hooks import hidden_state
from ...kernel import Probe, last_logits
from ...parameters import requiring_grad
from .factors import Direct, Factor
from .layout import Batch
from .recording import Recorder
from .rules import Key, Use

Factors = dict[Key, list[Factor]]
BEFORE = -1  # the stage of the embeddings; blocks are 0 to depth - 1, what follows them is depth


class StandIn(nn.Module):
    """Stands in a block's place in the model's list, with its attributes and another forward."""

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self._instead = (block, forward)  # in a tuple, so as not to be registered as a child
        self.training = block.training

    def __getattr__(self, name: str) -> Any:
        """Return the block's own attribute."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_instead"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what stands for the block's output."""
        return self._instead[1](*args, **kwargs)


@contextmanager
def standing_in(
    blocks: nn.ModuleList, forward: Callable[[int], Callable[..., Any]]
) -> Generator[None]:
    """Replace block ℓ of the list by `forward(ℓ)` inside the `with` block."""
    originals = list(blocks)
    try:
        for index, block in enumerate(originals):
            blocks[index] = StandIn(block, forward(index))
        yield
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block


class Pass:
    """One model and a tile of prompts, going down by stages.

    Args:
        model: the model, in evaluation mode.
        blocks: its list of blocks; `None` makes the whole model one stage.
        probes: the tile's prompts.
        watched: the parameters whose factors are wanted, by name.
        formed: whether to have autograd form the gradients, of one prompt alone, not the rules.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: nn.ModuleList | None,
        probes: Sequence[Probe],
        watched: dict[str, nn.Parameter],
        formed: bool = False,
    ) -> None:
        self.unruled: set[str] = set()
        self._model, self._blocks, self._probes = model, blocks, probes
        self._watched, self._formed = watched, formed
        self._streams: list[Tensor] = []
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
        self._cotangents: Tensor | None = None
        self._below: Tensor | None = None
        if blocks is not None:
            self._remember(blocks)

    @property
    def stages(self) -> range:
        """Return the stages from the top down."""
        return range(len(self._streams) - 1, BEFORE - 1, -1) if self._streams else range(1)

    def run(self, stage: int) -> Factors:
        """Return the factors of the watched parameters used in a stage."""
        lengths = tuple(len(p.input_ids) for p in self._probes)
        recorder = Recorder({} if self._formed else self._watched, Batch(lengths, max(lengths)))
        chosen = self._watched if self._formed else {}
        with requiring_grad(self._model, chosen), torch.enable_grad():
            with recorder:
                source, output = self._stage(stage)
            return self._differentiated(source, output, recorder)

    def descend(self) -> None:
        """Take the cotangents from the stage last run to the one below it."""
        self._cotangents, self._below = self._below, None

    def _remember(self, blocks: nn.ModuleList) -> None:
        """Run the model forward, keeping what enters each block and leaves the last."""
        originals = list(blocks)

        def kept(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden, *rest = args or (kwargs.pop("hidden_states"),)
                self._streams.append(hidden.detach().clone())
                output = originals[index](hidden, *rest, **kwargs)
                self._calls.append(
                    (tuple(rest), kwargs, output if isinstance(output, tuple) else None)
                )
                if index == len(originals) - 1:
                    self._streams.append(hidden_state(output).detach())
                return output

            return forward

        with torch.no_grad(), standing_in(blocks, kept):
            last_logits(self._model, [p.input_ids for p in self._probes])

    def _stage(self, stage: int) -> tuple[Tensor | None, Tensor]:
        """Run one stage; return what enters it, if a residual stream, and what leaves it."""
        if self._blocks is None:
            return None, self._read()
        if stage == BEFORE:
            return None, self._embedded(self._blocks)
        source = self._streams[stage].detach().requires_grad_()
        if stage == len(self._blocks):
            with standing_in(self._blocks, lambda index: self._constant(index, source)):
                return source, self._read()
        args, kwargs, _ = self._calls[stage]
        return source, hidden_state(self._blocks[stage](source, *args, **kwargs))

    def _constant(self, index: int, hidden: Tensor) -> Callable[..., Any]:
        """Return a forward that gives `hidden` as the block gives its output."""
        output = self._calls[index][2]
        return lambda *args, **kwargs: hidden if output is None else (hidden, *output[1:])

    def _embedded(self, blocks: nn.ModuleList) -> Tensor:
        """Return what enters the first block."""
        found: list[Tensor] = []

        def passing(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden = args[0] if args else kwargs["hidden_states"]
                if index == 0:
                    found.append(hidden)
                return self._constant(index, hidden)()

            return forward

        with standing_in(blocks, passing):
            last_logits(self._model, [p.input_ids for p in self._probes])
        return found[0]

    def _read(self) -> Float[Tensor, "n k"]:
        """Return the values that the probes read."""
        logits = finite(last_logits(self._model, [p.input_ids for p in self._probes]))
        return torch.stack([probe.read(z) for probe, z in zip(self._probes, logits, strict=True)])

    def _differentiated(self, source: Tensor | None, output: Tensor, recorder: Recorder) -> Factors:
        """Return the factors of a stage that has been run, and keep the cotangents below it."""
        self.unruled |= recorder.unruled
        found: Factors = {}
        if not output.requires_grad:
            return found
        if self._formed:
            ends: list[Any] = list(self._watched.values())
        else:
            ends = [edge for edge, _ in recorder.uses]
        inputs = ends if source is None else [source, *ends]
        gradients = list(self._gradients(output, inputs))
        self._below = None if source is None else gradients.pop(0)
        if self._formed:
            for name, g in zip(self._watched, gradients, strict=True):
                if g is not None:
                    found[name, None] = [Direct(g.reshape(len(g), 1, -1))]
            return found
        for (_, use), g in zip(recorder.uses, gradients, strict=True):
            if g is not None and use.key[0] not in self.unruled:
                found.setdefault(use.key, []).append(use.factor(g))
        return found

    def _gradients(
        self, output: Tensor, inputs: Sequence[Tensor | GradientEdge]
    ) -> Sequence[Tensor | None]:
        """Return the gradients of the k values with respect to `inputs`, k first."""
        cotangents = self._cotangents
        if cotangents is None:  # the top: the values themselves
            n, k = output.shape
            cotangents = torch.eye(k, dtype=output.dtype, device=output.device)[:, None].expand(
                k, n, k
            )
        return torch.autograd.grad(
            output,
            inputs,
            cotangents,
            is_grads_batched=True,
            allow_unused=True,  # type: ignore[arg-type]
        )
