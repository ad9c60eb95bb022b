"""Backward passes of one micro-batch, one decoder block at a time.

A first forward pass records what enters every block. Then the stages run from the logits down to
the embeddings: each is run again and differentiated with the cotangents of the stage above it.

A stage is one block, or what follows the last block, or what precedes the first. Only the current
stage holds activations and gradients, so memory does not grow with depth times prompts.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ...kernel import last_logits
from ...models.architecture import hidden_state, with_output_state
from ...models.batching import forgetting_lengths
from ...models.parameters import requiring_grad
from ...models.precision import computing_in
from ...models.replacement import replace_blocks
from ...models.validation import finite
from .factors import Direct, Factor, Outer, PaddedBatch, drop_zero_positions, restrict_columns
from .gradient_rules import Key, OperationRecorder

Factors = dict[Key, list[Factor]]
End = tuple[Tensor | GradientEdge, Callable[[Tensor], Tensor]]
"""Where gradients are taken, and what maps one to the tensor that is kept of it, `[n, ...]`."""

VALUES_AT_A_TIME = {"cpu": 2**18, "cuda": 2**26}  # entries of a stage's output × cotangents


@runtime_checkable
class ProbeLike(Protocol):
    """A prompt and the values read from its logits: a `Probe`, or a combination of its values."""

    @property
    def input_ids(self) -> Tensor:
        """The prompt's token ids."""
        ...

    def read(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " k"]:
        """Return the values."""
        ...


@dataclass(frozen=True)
class BackwardSchedule:
    """How the backward pass of a model is divided.

    Attributes:
        model: the model, in evaluation mode.
        blocks: the list of its decoder blocks, a stage each; `None`: the whole model is one stage.
        dtype: the dtype of the computation.
        columns: the vocabulary ids that any prompt reads, sorted; `None` where all may be read.
    """

    model: nn.Module
    blocks: nn.ModuleList | None
    dtype: torch.dtype
    columns: Int[Tensor, " some"] | None = None


class BlockwiseBackward:
    """The backward pass of one micro-batch, stage by stage.

    Stages have the number of their block, from 0; what follows the last block is stage `depth`, and
    what precedes the first is stage -1. Without `blocks` there is one stage, 0.

    Attributes:
        no_rule: the parameters used in an operation that has no gradient rule.
    """

    def __init__(
        self,
        schedule: BackwardSchedule,
        probes: Sequence[ProbeLike],
        watched: dict[str, nn.Parameter],
    ) -> None:
        self.no_rule: set[str] = set()
        self._schedule, self._probes, self._watched = schedule, probes, watched
        self._model, self._blocks, self._dtype = schedule.model, schedule.blocks, schedule.dtype
        self._prompts = [probe.input_ids for probe in probes]
        self._vocabulary = 0
        self._residuals: list[Tensor] = []  # what enters each block, then what leaves the last
        self._block_calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
        self._cotangents: Tensor | None = None
        self._next_cotangents: Tensor | None = None
        if schedule.blocks is not None:
            self._record_forward(schedule.blocks)

    @property
    def stages(self) -> list[int]:
        """The stages in the order of the backward pass."""
        return list(range(len(self._block_calls), -2, -1)) if self._blocks is not None else [0]

    def run(self, stage: int) -> Factors:
        """Return the gradient factors of the watched parameters that a stage uses."""
        lengths = tuple(map(len, self._prompts))
        recorder = OperationRecorder(self._watched, PaddedBatch(lengths, max(lengths)))
        with requiring_grad(self._model, {}), torch.enable_grad(), self._in_dtype(stage):
            with recorder:
                source, output = self._run_stage(stage)
            self.no_rule |= recorder.no_rule
            ends = [(edge, use.by_prompt) for edge, use in recorder.uses]
            gradients = self._gradients(source, output, ends)
        found: Factors = {}
        for (_, use), g in zip(recorder.uses, gradients, strict=True):
            if g is not None and use.key[0] not in self.no_rule:
                found.setdefault(use.key, []).append(self._without_zeros(use.factor(g), stage))
        return found

    def advance(self) -> None:
        """Make the gradients at the input of the stage last run the cotangents of the next one."""
        self._cotangents, self._next_cotangents = self._next_cotangents, None
        del self._residuals[-1:]  # what entered the stage last run: none below it is run from there

    def cotangents_by_prompt(self) -> list[Tensor] | None:
        """Return each prompt's cotangents of the stage to run next, `[k, tokens, width]`.

        `None` where they are not of that form: before the first stage, and in some models.
        """
        found, lengths = self._cotangents, [len(ids) for ids in self._prompts]
        if found is None or found.dim() != 4 or found.shape[1:3] != (len(lengths), max(lengths)):
            return None
        return [found[:, row, :length] for row, length in enumerate(lengths)]

    def go_on_at(self, stage: int, cotangents: Sequence[Float[Tensor, "k _ width"]]) -> None:
        """Run `stage` next, with the cotangents that `cotangents_by_prompt` returned."""
        del self._residuals[stage + 1 :]
        device = next(self._model.parameters()).device
        longest = max(len(ids) for ids in self._prompts)
        padded = [nn.functional.pad(c, (0, 0, 0, longest - c.shape[1])) for c in cotangents]
        self._cotangents = torch.stack(padded, 1).to(device)

    def _in_dtype(self, stage: int) -> ExitStack:
        """Return the context in which a stage's parameters are in the dtype of the computation."""
        stack = ExitStack()
        stack.enter_context(forgetting_lengths(self._model))
        if self._blocks is not None and 0 <= stage < len(self._blocks):
            stack.enter_context(computing_in(self._dtype, [self._blocks[stage]]))
        else:
            stack.enter_context(computing_in(self._dtype, [self._model], apart=self._blocks))
        return stack

    def _record_forward(self, blocks: nn.ModuleList) -> None:
        """Run the model forward, recording what enters each block and what leaves the last."""
        originals = list(blocks)
        with (
            torch.no_grad(),
            self._in_dtype(-1),
            replace_blocks(blocks, lambda index: partial(self._record_block, originals[index])),
        ):
            last_logits(self._model, self._prompts)

    def _record_block(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return a block's output, recording its hidden states and its other arguments."""
        hidden, *rest = args or (kwargs.pop("hidden_states"),)
        self._residuals[-1:] = [hidden.detach().clone()]
        with computing_in(self._dtype, [block]):
            output = block(hidden, *rest, **kwargs)
        wrapped = None if isinstance(output, Tensor) else output
        self._block_calls.append((tuple(rest), kwargs, wrapped))
        self._residuals.append(hidden_state(output).detach())
        return output

    def _run_stage(self, stage: int) -> tuple[Tensor | None, Tensor]:
        """Return the hidden states that enter a stage (`None` for none), and its output."""
        if self._blocks is None:
            return None, self._probe_values()
        if stage < 0:
            return None, self._first_block_input(self._blocks)
        source = self._residuals[stage].detach().requires_grad_()
        if stage == len(self._blocks):
            with replace_blocks(self._blocks, lambda i: partial(self._as_block_output, i, source)):
                return source, self._probe_values()
        args, kwargs, _ = self._block_calls[stage]
        return source, hidden_state(self._blocks[stage](source, *args, **kwargs))

    def _as_block_output(self, index: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return `hidden` in the form of a block's output, whatever enters the block."""
        output = self._block_calls[index][2]
        return hidden if output is None else with_output_state(output, hidden)

    def _first_block_input(self, blocks: nn.ModuleList) -> Tensor:
        found: list[Tensor] = []

        def record_input(index: int, *args: Any, **kwargs: Any) -> Any:
            found.append(args[0] if args else kwargs["hidden_states"])
            return self._as_block_output(index, found[0].detach())

        with replace_blocks(blocks, lambda index: partial(record_input, index)):
            last_logits(self._model, self._prompts)
        return found[0]

    def _probe_values(self) -> Float[Tensor, "n k"]:
        logits = finite(last_logits(self._model, self._prompts))
        self._vocabulary = logits.shape[1]
        return torch.stack([probe.read(z) for probe, z in zip(self._probes, logits, strict=True)])

    def _gradients(
        self, source: Tensor | None, output: Tensor, ends: Sequence[End]
    ) -> list[Tensor | None]:
        """Return the k values' gradients at each of `ends`, and store those at `source`."""
        cotangents = self._cotangents
        if cotangents is None:  # the first stage, whose output is the values themselves
            n, k = output.shape
            eye = torch.eye(k, dtype=output.dtype, device=output.device)
            cotangents = eye[:, None].expand(k, n, k)
        all_ends = list(ends) if source is None else [(source, lambda g: g[None]), *ends]
        if not all_ends or not output.requires_grad:
            return [None] * len(ends)
        found = vjps(output, all_ends, cotangents)
        if source is None:
            return found
        self._next_cotangents = found[0][0] if found[0] is not None else None
        return found[1:]

    def _without_zeros(self, factor: Factor, stage: int) -> Factor:
        """Return a factor without entries that are zero because only the last position is read."""
        depth = len(self._blocks) if self._blocks is not None else 0
        if stage < depth - 1:
            return factor
        columns = self._schedule.columns
        if stage == depth and columns is not None and isinstance(factor, Outer):
            if factor.g.shape[3] == self._vocabulary:
                factor = restrict_columns(factor, columns.to(factor.g.device))
        return drop_zero_positions(factor)


class SinglePromptBackward(BlockwiseBackward):
    """The backward pass of one prompt, with its parameters' gradients formed by autograd."""

    def run(self, stage: int) -> Factors:
        """Return the gradients of the watched parameters that a stage uses."""
        ends: list[End] = [(p, lambda g: g.flatten()[None]) for p in self._watched.values()]
        with requiring_grad(self._model, self._watched), torch.enable_grad(), self._in_dtype(stage):
            gradients = self._gradients(*self._run_stage(stage), ends)
        return {
            (name, None): [Direct(g)]
            for name, g in zip(self._watched, gradients, strict=True)
            if g is not None
        }


class PerSampleGradients:
    """The backward passes of a micro-batch, prompt by prompt, with gradients formed by autograd.

    For parameters used in an operation without a gradient rule, and to check every rule.
    """

    def __init__(
        self,
        schedule: BackwardSchedule,
        probes: Sequence[ProbeLike],
        watched: dict[str, nn.Parameter],
    ) -> None:
        self.no_rule: set[str] = set()
        self._prompts = [SinglePromptBackward(schedule, [probe], watched) for probe in probes]

    def run(self, stage: int) -> Factors:
        """Return the gradients of all prompts, zero for a prompt that does not use a parameter."""
        found = [prompt.run(stage) for prompt in self._prompts]
        some = {key: factors[key][0] for factors in found for key in factors}
        return {
            key: [Direct(torch.cat([f[key][0].v if key in f else 0 * one.v for f in found]))]  # type: ignore[union-attr]
            for key, one in some.items()
        }

    def advance(self) -> None:
        """Make the gradients at the input of the stage last run the cotangents of the next one."""
        for prompt in self._prompts:
            prompt.advance()

    def cotangents_by_prompt(self) -> list[Tensor] | None:
        """Return each prompt's cotangents, as `BlockwiseBackward` does."""
        found = [prompt.cotangents_by_prompt() for prompt in self._prompts]
        return None if None in found else [one for each in found if each for one in each]

    def go_on_at(self, stage: int, cotangents: Sequence[Float[Tensor, "k _ width"]]) -> None:
        """Run `stage` next, with the cotangents that `cotangents_by_prompt` returned."""
        for prompt, own in zip(self._prompts, cotangents, strict=True):
            prompt.go_on_at(stage, [own])


def vjps(
    output: Float[Tensor, "..."], ends: Sequence[End], cotangents: Float[Tensor, "k ..."]
) -> list[Float[Tensor, "n k ..."] | None]:
    """Return what is kept of k vector-Jacobian products at each end; `None` where none arrives.

    They are batched where the output is small, and taken one by one where it is large: there the
    memory traffic of a batched pass costs more than the batch saves. Each goes to its place in the
    result as soon as it is there, so that no second copy of all of them exists.

    Args:
        output: what is differentiated.
        ends: where gradients are taken, and what maps each to `[n, ...]`.
        cotangents: one per product, each of the output's shape.
    """
    most = VALUES_AT_A_TIME.get(output.device.type, VALUES_AT_A_TIME["cpu"])
    step, k = max(1, most // output.numel()), len(cotangents)
    inputs: list[Any] = [end for end, _ in ends]
    found: list[Tensor | None] = [None] * len(ends)
    for i in range(0, k, step):
        some = cotangents[i : i + step]
        batched = len(some) > 1
        gradients = torch.autograd.grad(
            output,
            inputs,
            some if batched else some[0],
            retain_graph=i + step < k,
            is_grads_batched=batched,
            allow_unused=True,
        )
        for place, g in enumerate(gradients):
            for j, one in enumerate(() if g is None else g if batched else (g,), start=i):
                found[place] = _with_value(found[place], j, k, ends[place][1](one))
        del gradients, g
    return found


def _with_value(values: Tensor | None, j: int, k: int, one: Float[Tensor, "n ..."]) -> Tensor:
    """Return the k values' gradients, `[n, k, ...]`, with the j-th in them; new where `None`."""
    if values is None:
        values = one.new_empty(len(one), k, *one.shape[1:])
    values[:, j] = one
    return values
