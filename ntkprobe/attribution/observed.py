"""What is explained: refused prompts, one number at each, and its gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from ..errors import UserError
from ..kernel import last_logits
from ..measurement.influence import Refusals
from ..measurement.readouts import token_id
from ..models.generation import require_measurable
from ..models.gradients import gradients
from ..models.padding_row import varying_padding_row
from ..models.parameters import requiring_grad
from ..models.precision import at_least_single
from ..prompts.phrases import phrase_set
from ..prompts.prompt_set import Prompt, PromptSet
from ..prompts.templates import Template
from ..refusal import phrase_ids
from ..training.data import Pair
from ..training.sft import SFTConfig, encode_pair
from ..trajectory import Trajectory
from .settings import AttributionSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD = 4 << 30
"""Bytes of gradients of observed prompts that are held at once."""


@dataclass(frozen=True, eq=False)
class Observed:
    """The observed prompts as tokens, and what is read of them.

    Attributes:
        prompts: as texts.
        input_ids: of each; with its response for the target `response`.
        labels: the tokens whose log-probabilities are read, for the target `response`.
        phrases: token ids of the refusals, for the targets of refusals.
        tokens: vocabulary ids, each once, for the target `tokens`.
        target: one of `settings.TARGETS`.
    """

    prompts: PromptSet
    input_ids: tuple[Int[Tensor, " _"], ...]
    labels: tuple[Int[Tensor, " _"], ...]
    phrases: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    target: str

    def reader(self, model: nn.Module, chosen: dict[str, nn.Parameter]) -> "Reader":
        """Return what reads the number of one prompt, to be differentiated."""
        if self.target.startswith("refusal"):
            require_measurable(model, self.input_ids, new_tokens=max(map(len, self.phrases)) - 1)
            how = "prefix_free" if self.target.endswith("prefix_free") else "literal"
            longest = max(self.input_ids, key=len)
            refusals = Refusals(model, chosen, self.phrases, (how,), longest)
            return lambda row: refusals([self.input_ids[row]])[0, 0]
        require_measurable(model, self.input_ids)
        if self.target == "tokens":
            ids = torch.tensor(self.tokens)
            return lambda row: (
                last_logits(model, [self.input_ids[row]])[0].log_softmax(-1)[ids].logsumexp(-1)
            )
        return lambda row: -pair_losses(model, [self.input_ids[row]], [self.labels[row]])[0]

    def held(
        self, model: nn.Module, chosen: dict[str, nn.Parameter]
    ) -> tuple[Float64[Tensor, " m"], dict[str, Float[Tensor, "m ..."]]]:
        """Return the number of each prompt, and its gradient by parameter.

        Raises:
            UserError: if the gradients do not fit into `HELD` bytes.
        """
        size = sum(p.numel() * max(4, p.element_size()) for p in chosen.values())
        if size * len(self.prompts) > HELD:
            raise UserError(
                f"the gradients of {len(self.prompts)} prompts take "
                f"{size * len(self.prompts) / 2**30:.0f} GiB: give {max(1, HELD // size)} prompts "
                "at a time, fewer parameters, or --estimator sketch"
            )
        read = self.reader(model, chosen)
        values, each = [], []
        with requiring_grad(model, chosen), varying_padding_row(model), torch.enable_grad():
            for row in range(len(self.prompts)):
                value = read(row)
                values.append(value.detach().double().cpu())
                each.append([at_least_single(g) for g in gradients(value, chosen.values())])
        held = {
            name: torch.stack(g) for name, g in zip(chosen, zip(*each, strict=True), strict=True)
        }
        return torch.stack(values), held


Reader = Callable[[int], Tensor]


def observe(
    prompts: PromptSet,
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    config: SFTConfig,
    settings: AttributionSettings,
) -> Observed:
    """Return the observed prompts as tokens.

    Args:
        prompts: as texts.
        tokenizer: the model's.
        template: that of the training.
        config: of the training, for its system message and length.
        settings: what is read; the target `response` needs one of every prompt.

    Returns:
        What is observed.
    """
    labels: tuple[Tensor, ...] = ()
    if settings.target == "response":
        rows = [_with_response(p.text, p.response, tokenizer, template, config) for p in prompts]
        ids = tuple(torch.tensor(row["input_ids"]) for row in rows)
        labels = tuple(torch.tensor(row["labels"]) for row in rows)
    else:
        ids = tuple(torch.tensor(_as_trained(p, tokenizer, template, config)) for p in prompts)
    refused = settings.target.startswith("refusal")
    written = phrase_ids(tokenizer, phrase_set("paper31"), template) if refused else []
    return Observed(
        prompts,
        ids,
        labels,
        tuple(tuple(each) for each in written if each),
        tuple(dict.fromkeys(token_id(tokenizer, token) for token in settings.tokens)),
        settings.target,
    )


def _as_trained(
    prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", template: Template, config: SFTConfig
) -> list[int]:
    """Return a prompt as the training asked its own: with the system message, if it had one.

    Raises:
        UserError: if a system message and a response before the measured place come together.
    """
    if not config.system:
        return template.encode(tokenizer, prompt)
    if prompt.response:
        raise UserError(
            f"the prompt {prompt.text!r} has a response and the run a system message: leave out "
            "the response, or take the target 'response'"
        )
    ids, answer = template.encode_pair(tokenizer, prompt.text, "Fine", system=config.system)
    return ids[: answer.index(True)]


def _with_response(
    text: str,
    response: str,
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    config: SFTConfig,
) -> dict[str, list[int]]:
    """Return a prompt with its response as a training pair would be, the response alone labelled.

    Raises:
        UserError: if there is no response, or no room for it.
    """
    if not response.strip():
        raise UserError(
            f"the target 'response' needs one of every prompt, {text!r} has none: give a file with "
            "a column response"
        )
    row, _ = encode_pair(Pair(text, response), tokenizer, template, config, loss_on="response")
    if row is None:
        raise UserError(f"the prompt {text!r} leaves no room for its response: shorten it")
    return row


def pair_losses(
    model: nn.Module, input_ids: Sequence[Tensor], labels: Sequence[Tensor], mean: bool = False
) -> Float[Tensor, " rows"]:
    """Return the loss of each pair of a batch, padded on the right, to be differentiated.

    Args:
        model: a causal language model.
        input_ids: of each pair.
        labels: the token to predict at every place, below 0 where none is.
        mean: over a pair's tokens with a label, instead of their sum.
    """
    device, longest = next(model.parameters()).device, max(map(len, input_ids))
    ids = torch.zeros(len(input_ids), longest, dtype=torch.long)
    targets = torch.full((len(input_ids), longest), -100)
    for row, (tokens, wanted) in enumerate(zip(input_ids, labels, strict=True)):
        ids[row, : len(tokens)], targets[row, : len(wanted)] = tokens, wanted
    logits = model(input_ids=ids.to(device), use_cache=False).logits[:, :-1]
    targets = targets[:, 1:].to(device)
    rows, places = (targets >= 0).nonzero(as_tuple=True)
    some = logits[rows, places]
    wide = some if some.dtype == torch.float64 else some.float()
    terms = -wide.log_softmax(-1)[torch.arange(len(rows)), targets[rows, places]]
    totals = terms.new_zeros(len(ids)).index_add(0, rows, terms)
    return totals / (targets >= 0).sum(1).clamp(min=1) if mean else totals


def refused_prompts(folder: str | PathLike[str]) -> PromptSet:
    """Return the prompts that were refused at the last step measured, other than toxic ones.

    A refusal is a generated answer that refuses; where none were generated, P(refuse) of at least
    one half.

    Args:
        folder: of `ntkprobe measure`.

    Returns:
        The prompts, in their order, each with the response inside which it was measured.

    Raises:
        UserError: if no refusals were measured, or nothing was refused.
    """
    run = Trajectory(folder)
    rows = run.refusal()
    if rows.empty:
        raise UserError(f"{run.folder} has no refusals: measure them without --only kernel")
    rows = rows[(rows["step"] == rows["step"].max()) & (rows["reduction"] == "literal")]
    refused = rows["refuses"].fillna(rows["probability"] >= 0.5).astype(bool)
    kept = (
        rows[refused & (rows["group"] != "toxic")].drop_duplicates("prompt").sort_values("prompt")
    )
    if kept.empty:
        raise UserError(
            f"{run.folder}: no prompt but toxic ones was refused at step {rows['step'].max()}: "
            'name one with --prompt "…"'
        )
    about = run.prompts.set_index("prompt")
    responses = about["response"] if "response" in about else pd.Series("", index=about.index)
    each = zip(kept["text"], kept["group"], responses[kept["prompt"]], strict=True)
    return PromptSet(tuple(Prompt(text, group, response=before) for text, group, before in each))
