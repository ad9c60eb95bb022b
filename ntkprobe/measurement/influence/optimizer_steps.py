"""The effect of a recorded optimizer step on the answers, to first order: J(x′) Δθ.

Eq. 2 has Δθ = −η ∇L, a step of gradient descent on one pair. AdamW divides by running moments, adds
decay, and steps on a batch: its Δθ is recorded (`record_step`, or `ntkprobe.StepCallback` in a
Trainer) and takes the place of −η ∇L. The derivative is the same and exact.
"""

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import UserError, require
from ...models.generation import length_batches, require_measurable
from ...models.gradients import gradients
from ...models.parameters import (
    ParameterSelection,
    adapter_parameters,
    difference,
    effective_parameters,
)
from ...models.validation import finite
from ...prompts.prompt_set import PromptSet
from ...prompts.templates import RAW, Template
from ...refusal import chosen_reductions
from ..encoding import evaluating
from .examples import encode_observed
from .observations import LogProbabilities, Observation, Refusals
from .prediction import refusal_phrases, trained_parameters, vocabulary_ids
from .updates import Direction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODES = ("forward", "reverse")
Pair = tuple[Tensor, Tensor]
_FILE = re.compile(r"step-(\d{8})\.safetensors")


@dataclass(frozen=True, eq=False)
class StepPrediction:
    """The predicted effect of a step, to first order.

    Attributes:
        observed: the prompts x′; None where token ids were given.
        log_probability: the change of log π of the answer's first token, `[observed, vocab]` or
            `[observed, k]` float64; None if not asked for.
        refusals: the change of log P_refuse by reduction, each `[observed]` float64.
        before: log P_refuse before the step by reduction, from the same pass.
    """

    observed: PromptSet | None
    log_probability: Tensor | None
    refusals: dict[str, Tensor]
    before: dict[str, Tensor]

    @property
    def refusal(self) -> Tensor:
        """The change of log P_refuse for the first reduction asked for, `[observed]`.

        Raises:
            UserError: if there is none.
        """
        if not self.refusals:
            raise UserError("no change of refusals: give phrases=, as token ids without tokenizer")
        return next(iter(self.refusals.values()))


def predict_step(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    observed: Any,
    step: Direction,
    tokens: str | Sequence[int] | Tensor | None = None,
    phrases: str | Sequence[Any] | None = "paper31",
    reductions: str | Sequence[str] = ("literal",),
    template: str | Template = "auto",
    max_length: int | None = None,
    batch_size: int = 32,
    mode: str = "forward",
) -> StepPrediction:
    """Predict the effect of a step Δθ on each observed prompt, to first order (Eq. 2).

    Args:
        model: as it was before the step.
        tokenizer: its tokenizer; None where everything is given as token ids.
        observed: the prompts x′: a `PromptSet`, texts, or rows of token ids.
        step: Δθ by canonical name, as `record_step` and `read_steps` return it, each in the shape
            of its parameter; other parameters do not change.
        tokens: the tokens whose log-probabilities are predicted: `all`, vocabulary ids `[k]`, or
            None.
        phrases: the refusal phrases: a set's name, texts, token ids, or None.
        reductions: how phrases are summed, `literal`, `prefix_free`, or both.
        template: how prompts become tokens.
        max_length: longer prompts lose the end of their text.
        batch_size: prompts in one forward pass; it changes no result.
        mode: how log P_refuse is differentiated: `forward`, one pass over all prompts; `reverse`, a
            backward pass for each and its inner product with Δθ, often faster on small models.

    Returns:
        The predicted changes of log-probabilities, in nats. A step that is empty, names a
        parameter which the model does not have or has another shape, an unknown mode, reduction or
        phrase set, neither tokens nor phrases, and a model or prompt that cannot be measured are
        each a `UserError`.
    """
    require(mode in MODES, f"no mode {mode!r}: choose from {list(MODES)}")
    encoded, ids = encode_observed(tokenizer, observed, template, max_length)
    ends = refusal_phrases(tokenizer, phrases, "ascii", encoded.template if encoded else RAW)
    require(tokens is not None or ends, "nothing to predict: give tokens=, phrases=, or both")
    selected_reductions = chosen_reductions(reductions) if ends else ()
    with evaluating(model):
        new_tokens = max(map(len, ends), default=1) - 1
        require_measurable(model, ids, new_tokens, gradients=True)
        chosen = _named_by(step, model)
        forward = partial(_forward, ids=ids, step=step, batch_size=batch_size)
        first = None
        if tokens is not None:
            logits, first = forward(LogProbabilities(model, chosen, vocabulary_ids(model, tokens)))
            finite(logits, range(len(ids)))
        found: Pair = (torch.empty(len(ids), 0), torch.empty(len(ids), 0))
        if ends:
            observation = Refusals(model, chosen, ends, selected_reductions, max(ids, key=len))
            found = forward(observation) if mode == "forward" else _reverse(observation, ids, step)
    named = [dict(zip(selected_reductions, values.unbind(-1), strict=True)) for values in found]
    return StepPrediction(encoded.prompts if encoded else None, first, named[1], named[0])


def _forward(observation: Observation, ids: list[Tensor], step: Direction, batch_size: int) -> Pair:
    """Return the observed values of every prompt and J(x′) Δθ, each `[observed, values]`."""
    found: list[tuple[Tensor, ...]] = [()] * len(ids)
    for rows in length_batches(ids, batch_size):
        pairs = zip(
            *observation.directional_derivative([ids[row] for row in rows], step), strict=True
        )
        for row, pair in zip(rows, pairs, strict=True):
            found[row] = pair
    before, change = (torch.stack(values) for values in zip(*found, strict=True))
    return before, change


def _reverse(observation: Observation, ids: list[Tensor], step: Direction) -> Pair:
    """Return the same by a backward pass for each prompt and value."""
    before, change = [], []
    for prompt in ids:
        with observation.differentiated(), torch.enable_grad():
            values = observation([prompt])[0]
            found = [
                gradients(value, observation.chosen.values(), retain_graph=True) for value in values
            ]
        before.append(values.detach().double().cpu())
        change.append(
            torch.stack([_inner_product(step, observation.chosen, each) for each in found])
        )
    return torch.stack(before), torch.stack(change)


def _inner_product(step: Direction, names: Iterable[str], gradient: Sequence[Tensor]) -> Tensor:
    """Return the inner product of a step and a gradient, in float64."""
    parts = [
        (g.double().cpu() * step[n].double().cpu()).sum()
        for n, g in zip(names, gradient, strict=True)
    ]
    return torch.stack(parts).sum()


def _named_by(step: Direction, model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a step moves.

    Raises:
        UserError: if the model lacks one of them, or has it in another shape.
    """
    require(step, "the step moves nothing: record it around the optimizer's step()")
    known = {**effective_parameters(model), **adapter_parameters(model)}
    for name, change in step.items():
        if name not in known or known[name].shape != change.shape:
            raise UserError(
                f"the step moves {name}, {tuple(change.shape)}, which this model does not have: "
                "give the model that was trained, its adapter not merged"
            )
    # A module trained whole has two names: a step that gives both moves it once.
    once = {id(known[name]): name for name in reversed(step)}
    return {name: known[name] for name in step if once[id(known[name])] == name}


@contextmanager
def record_step(
    model: nn.Module, parameters: str | ParameterSelection = "auto"
) -> Generator[Direction]:
    """Record the change of θ inside the `with` block, by any optimizer's `step()`.

    A selection that is unknown, or selects nothing in this model, is a `UserError`.

    Args:
        model: the model that is trained.
        parameters: the selection; `auto` is `lora` with an adapter, else `all`.

    Yields:
        Δθ by canonical name, in float32 at least: empty in the block, filled at its end.
    """
    spec = trained_parameters(model) if parameters == "auto" else parameters
    chosen = ParameterSelection.parse(spec).parameters(model)
    before = {name: parameter.detach().clone() for name, parameter in chosen.items()}
    step: Direction = {}
    try:
        yield step
    finally:
        for name, parameter in chosen.items():
            step[name] = difference(parameter.detach(), before[name])


def count_steps(folder: str | PathLike[str]) -> int:
    """Return how many steps `ntkprobe.StepCallback` recorded, which are numbered from 1.

    Args:
        folder: the folder of their files.

    Raises:
        UserError: if there are none, or one is missing.
    """
    numbers = {int(m[1]) for p in Path(folder).glob("*") if (m := _FILE.fullmatch(p.name))}
    require(numbers, f"no steps in {folder}: train with callbacks=[ntkprobe.StepCallback(…)]")
    missing = sorted(set(range(1, max(numbers) + 1)) - numbers)
    if missing:
        raise UserError(f"{folder} lacks step {missing[0]}: train again from the beginning")
    return max(numbers)


def read_step(folder: str | PathLike[str], number: int) -> Direction:
    """Return one of the steps that `ntkprobe.StepCallback` recorded.

    Args:
        folder: the folder of their files.
        number: of the step, from 1.

    Raises:
        UserError: if its file is not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(folder) / f"step-{number:08d}.safetensors"
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise UserError(f"{path} is not whole: copy it again, or train again") from error


def read_steps(folder: str | PathLike[str]) -> Iterator[tuple[int, Direction]]:
    """Yield the steps that `ntkprobe.StepCallback` recorded, `(number, Δθ)`, in order from 1.

    Args:
        folder: the folder of their files.

    Raises:
        UserError: if there are none, or one is missing or not whole.
    """  # ruff: ignore[docstring-extraneous-exception]
    for number in range(1, count_steps(folder) + 1):
        yield number, read_step(folder, number)


@torch.no_grad()
def apply_step(model: nn.Module, step: Direction) -> None:
    """Add Δθ to a model's parameters, in place.

    An empty step, or one that names a parameter which the model does not have or has in another
    shape, is a `UserError`; the model is then unchanged.

    Args:
        model: the model before the step, changed in place.
        step: Δθ by canonical name.
    """
    for name, parameter in _named_by(step, model).items():
        change = step[name].to(parameter.device)
        wide = torch.promote_types(parameter.dtype, change.dtype)  # the sum is rounded once
        parameter.copy_(parameter.to(wide) + change.to(wide))
