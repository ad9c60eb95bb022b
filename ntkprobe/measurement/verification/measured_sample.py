"""The measured values for a few prompts, to be compared with an independent computation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from ...estimators.dense import Dense
from ...kernel import Estimator, Probe
from ...models.logits import last_logits
from ...models.parameters import ParameterSelection
from ...refusal import phrase_ids
from .. import Encoded, KernelMeasurement, RefusalMeasurement, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class MeasuredSample:
    """The values measured on up to three prompts of a run: the shortest and the two longest.

    Attributes:
        input_ids: their tokens.
        logits: after each of them, `[n, vocab]` float64, from one batch.
        log_refusal: log P_refuse of each, `[n]` float64, summed over all phrases; or None.
        log_refusal_at_most: its upper bound, where not all phrases were run to their ends.
        phrases: the phrases' tokens.
        kernel: K between the last two prompts at a token each, `[2, 2]` float64; or None.
        tokens: these tokens.
        selection: the selection that the kernel is over.
        names: of its parameters, in the measured model.
        numbers: the number of scalar parameters.
        dtype: of the model.
    """

    input_ids: tuple[tuple[int, ...], ...]
    logits: Float64[Tensor, "n vocab"]
    log_refusal: Float64[Tensor, " n"] | None
    log_refusal_at_most: Float64[Tensor, " n"] | None
    phrases: tuple[tuple[int, ...], ...]
    kernel: Float64[Tensor, "2 2"] | None
    tokens: tuple[int, int] | None
    selection: ParameterSelection
    names: tuple[str, ...]
    numbers: int
    dtype: torch.dtype


def sample_measurement(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    encoded: Encoded,
    rows: Sequence[int] | None = None,
    *,
    kernel: KernelMeasurement | None = None,
    estimator: Estimator | None = None,
    selection: str | ParameterSelection = "all",
    refusal: RefusalMeasurement | None = None,
    phrases: Sequence[str] = (),
) -> MeasuredSample:
    """Return the measured values for the shortest and the two longest of the prompts.

    The two longest are in one batch, if the estimator sorts prompts by length, and differ in
    length, so that an effect of padding or of the batch's longest prompt is visible.

    Args:
        model: the model that was measured, as it was measured.
        tokenizer: its tokenizer.
        encoded: all prompts of the run, which are those of the refusals.
        rows: which of them the kernel is between; None for all.
        kernel: the kernel's measurement; without its blocks the estimator is called again.
        estimator: the estimator that measured the kernel.
        selection: the parameters that the kernel is over.
        refusal: the measurement of refusals.
        phrases: the texts whose probabilities were summed.

    Returns:
        The values, on the CPU.
    """
    among = list(range(len(encoded.input_ids)) if rows is None else rows)
    places = _shortest_and_longest([encoded.input_ids[row] for row in among])
    sampled = [encoded.input_ids[among[place]] for place in places]
    ids = [torch.tensor(each) for each in sampled]
    with evaluating(model), torch.no_grad():
        logits = last_logits(model, ids).double().cpu()
    chosen = ParameterSelection.parse(selection)
    block, tokens, named = None, None, dict[str, nn.Parameter]()
    if kernel is not None and estimator is not None:
        named = chosen.parameters(model)
        block, tokens = _kernel_entries(model, kernel, estimator, chosen, ids[-2:], places[-2:])
    values, most, ends = None, None, list[tuple[int, ...]]()
    if refusal is not None:
        ends = phrase_ids(tokenizer, list(phrases), encoded.template)
        chosen_rows = [among[place] for place in places]
        values = _refusal_entries(refusal.log_probabilities, chosen_rows)
        most = _refusal_entries(refusal.upper, chosen_rows)
    return MeasuredSample(
        input_ids=tuple(sampled),
        logits=logits,
        log_refusal=values,
        log_refusal_at_most=values if most is None else most,
        phrases=tuple(each for each in ends if each),
        kernel=block,
        tokens=tokens,
        selection=chosen,
        names=tuple(named),
        numbers=sum(parameter.numel() for parameter in named.values()),
        dtype=next(model.parameters()).dtype,
    )


def _shortest_and_longest(input_ids: Sequence[Sequence[int]]) -> list[int]:
    """Return the positions of the shortest, second longest and longest prompts, without repeats.

    The second longest is shorter than the longest, if any prompt is.
    """
    order = sorted(range(len(input_ids)), key=lambda row: len(input_ids[row]))
    longest = order[-1]
    shorter = [row for row in order if len(input_ids[row]) < len(input_ids[longest])]
    second = (shorter or order)[-1] if len(order) > 1 else longest
    if second == longest and len(order) > 1:
        second = order[-2]
    return list(dict.fromkeys([order[0], second, longest]))


def _kernel_entries(
    model: nn.Module,
    measured: KernelMeasurement,
    estimator: Estimator,
    selection: ParameterSelection,
    ids: list[Tensor],
    rows: list[int],
) -> tuple[Tensor, tuple[int, int]]:
    """Return K of two prompts (one twice, where there is one) at a token each, and the tokens.

    The entries are those of the measurement, if it has its blocks. An estimator that approximates
    (it has an `rtol`) is checked by `verify`: here the exact kernel takes its place.
    """
    exact = not hasattr(estimator, "rtol")
    if exact and measured.blocks is not None and measured.tokens is not None:
        pair = torch.tensor([rows[0], rows[-1]])
        block = measured.blocks[pair][:, 0][:, pair][..., 0].double().cpu()
        return block, (int(measured.tokens[pair[0], 0]), int(measured.tokens[pair[1], 0]))
    tokens = (int(ids[0][0]), int(ids[-1][0]))
    probes = [Probe(x, torch.tensor([t])) for x, t in zip((ids[0], ids[-1]), tokens, strict=True)]
    with evaluating(model):
        method = estimator if exact else Dense()
        return method(model, probes, selection)[:, 0, :, 0].double().cpu(), tokens


def _refusal_entries(
    measured: dict[tuple[str, str], Tensor], rows: list[int]
) -> Float64[Tensor, " n"] | None:
    """Return the measured log P_refuse of some prompts; None if it was not summed over phrases."""
    found = [v for (_, how), v in measured.items() if how == "literal"]
    return found[0][rows].double().cpu() if found else None
