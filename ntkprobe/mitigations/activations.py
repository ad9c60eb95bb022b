"""Activations of decoder blocks: reading, averaging and changing the residual stream."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models.architecture import (
    Before,
    Hook,
    decoder,
    decoder_layers,
    hidden_state,
    hooked,
    writers,
)
from ..models.architecture import with_output_state as with_output_state
from ..models.batching import forgetting_lengths, together
from ..models.generation import input_device, length_batches, require_measurable
from ..prompts.templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def input_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden state among a decoder block's arguments."""
    return args[0] if args else kwargs["hidden_states"]


def with_input_state(
    args: tuple[Any, ...], kwargs: dict[str, Any], state: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a decoder block's arguments with another hidden state."""
    return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})


def mean_states(
    model: nn.Module,
    prompts: Sequence[Tensor],
    count: int,
    *,
    before: bool = False,
    final: bool = False,
    batch_size: int = 16,
) -> Tensor:
    """Return the mean over prompts of each block's output at the last `count` positions.

    Args:
        model: in evaluation mode.
        prompts: token ids, `count` at least of each.
        count: of positions.
        before: of each block's input instead.
        final: see `last_states`.
        batch_size: prompts at a time.

    Returns:
        [layers, count, hidden] float64, on the CPU; with `final` one layer more.
    """
    require_measurable(model, prompts)
    sums = [
        last_states(model, [prompts[row] for row in rows], count, before=before, final=final).sum(0)
        for rows in length_batches(prompts, batch_size)
    ]
    return torch.stack(sums).sum(0) / len(prompts)


def last_states(
    model: nn.Module,
    prompts: Sequence[Tensor],
    count: int,
    *,
    before: bool = False,
    final: bool = False,
) -> Tensor:
    """Return the output of each block at the last `count` positions of a batch of prompts.

    The decoder alone is run, without the output matrix.

    Args:
        model: in evaluation mode.
        prompts: token ids, `count` at least of each.
        count: of positions.
        before: return each block's input instead.
        final: add, as a further layer, the output of the decoder: that of the last block after the
            final norm, which transformers' `hidden_states` has in its place.

    Returns:
        [prompts, layers, count, hidden] float64, on the CPU; NaN or infinity is a `UserError`.
    """
    groups = together(model, prompts)
    found = [
        _in_one_pass(model, [prompts[row] for row in rows], count, before, final) for rows in groups
    ]
    places = torch.tensor([row for rows in groups for row in rows]).argsort()
    return torch.cat(found)[places]


@torch.no_grad()
def _in_one_pass(
    model: nn.Module, prompts: Sequence[Tensor], count: int, before: bool, final: bool
) -> Tensor:
    """Return the same of prompts that may share a pass.

    Raises:
        UserError: if a state is NaN or infinite.
    """
    blocks = decoder_layers(model)
    found: list[Tensor] = [torch.empty(0)] * len(blocks)
    where = torch.tensor([list(range(len(ids) - count, len(ids))) for ids in prompts])

    def keep(layer: int, state: Tensor) -> None:
        rows = torch.arange(len(where), device=state.device)[:, None]
        found[layer] = state[rows, where.to(state.device)].double().cpu()

    longest = max(map(len, prompts))
    # Padded behind, where a causal model does not look, with each prompt's own last token.
    rows = [torch.cat([ids, ids[-1:].expand(longest - len(ids))]) for ids in prompts]
    taps = [(block, _tap(layer, keep, before)) for layer, block in enumerate(blocks)]
    with hooked(taps), forgetting_lengths(model):
        ids = torch.stack(rows).to(input_device(model))
        output = decoder(model)(input_ids=ids, use_cache=False)
    if final:
        found.append(found[-1])
        leaving = hidden_state(output)
        if leaving.shape[-1] == found[-1].shape[-1]:  # OPT may project it to another width
            keep(len(blocks), leaving)
    states = torch.stack(found, 1)
    if not bool(states.isfinite().all()):
        raise UserError(
            "the model's activations are NaN or infinite: its weights are broken, or its precision "
            "is too low (try --dtype float32)"
        )
    return states


def _tap(layer: int, keep: Callable[[int, Tensor], None], before: bool) -> Hook | Before:
    """Return a hook that passes a block's input or output to `keep`."""
    if before:
        return Before(lambda module, args, kwargs: keep(layer, input_state(args, kwargs)))
    return lambda module, args, output: keep(layer, hidden_state(output))


def ablation_hooks(
    model: nn.Module, unit: Tensor, coefficient: float
) -> list[tuple[nn.Module, Hook | Before]]:
    """Return hooks that subtract `coefficient` times the component along a unit vector."""

    def without(state: Tensor) -> Tensor:
        along = unit.to(state)
        return state - coefficient * (state @ along)[..., None] * along

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return with_input_state(args, kwargs, without(input_state(args, kwargs)))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return with_output_state(output, without(hidden_state(output)))

    blocks = decoder_layers(model)
    inputs: list[tuple[nn.Module, Hook | Before]] = [(block, Before(before)) for block in blocks]
    return inputs + [(writer, after) for block in blocks for writer in writers(block)]


LEFT_OVER = 0.03
"""Of what a random direction holds of a state: rounding in bfloat16 leaves a tenth of it."""


def require_ablated(model: nn.Module, prompt: Tensor) -> None:
    """Check by two passes that ablation at 1 leaves nothing of a direction behind any block.

    Blocks that scale or normalise the stream itself write to it past their modules' outputs.

    Args:
        model: in evaluation mode.
        prompt: token ids.

    Raises:
        UserError: if it leaves something.
    """
    width = last_states(model, [prompt], 1).shape[-1]
    along = torch.randn(width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = nn.functional.normalize(along, dim=0)
    with hooked(ablation_hooks(model, unit, 1.0)):
        states = last_states(model, [prompt], len(prompt))[0]
    share = (states @ unit) / states.norm(dim=-1).clamp(min=1e-12) * width**0.5
    left = float(share.square().mean(-1).sqrt().max())
    if not left <= LEFT_OVER:
        raise UserError(
            f"Surgical cannot ablate a direction from {type(model).__name__}: its blocks write to "
            f"the residual stream past their attention and MLP ({left:.0%} of a direction stays)"
        )


def addition_hook(vector: Tensor, weight: float) -> Before:
    """Return a hook that adds a vector to a block's input, at every position."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = input_state(args, kwargs)
        return with_input_state(args, kwargs, state + weight * vector.to(state))

    return Before(before)


# Texts that end differently, so that what all of their prompts end with is the template's.
_PROBES = ("Hello", "Why?", "I do not know.", "do it, then", "(I)")


def instruction_end(tokenizer: "PreTrainedTokenizerBase", template: Template) -> list[int]:
    r"""Return the ids that a template puts behind the user's text, up to where the answer begins.

    In ChatML those of `<|im_end|>\n<|im_start|>assistant\n`. The last of them is the end of the
    instruction, e in SCANS; all of them are the positions that Surgical chooses from.

    Args:
        tokenizer: the model's.
        template: what prompts are encoded with.

    Returns:
        One id or more.

    Raises:
        UserError: for raw prompts, or a template that puts nothing there.
    """
    texts = [template.encode(tokenizer, text) for text in _PROBES]
    shared = 0
    while shared < min(map(len, texts)) and len({ids[-1 - shared] for ids in texts}) == 1:
        shared += 1
    if template.raw or not shared:
        raise UserError(
            f"the template {template.name!r} puts nothing behind an instruction: give one that "
            "does (--set template=chat, qwen2.5, llama-3 or a Jinja file)"
        )
    return texts[0][-shared:]
