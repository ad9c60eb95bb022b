"""The kernel between two checkpoints of one architecture, J(x′; θ_t) J(x; θ_s)ᵀ."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from .. import kernel
from ..estimators.gram import Gram
from ..kernel import Probe
from ..models.logits import check_logits
from ..models.parameters import ParameterSelection
from ..models.validation import check_loaded
from ..prompts.templates import Template
from .encoding import Encoded, Texts, as_encoded, evaluating
from .kernels import KernelMeasurement, token_texts
from .readouts import Readout, Tokens, tokens_read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def measure_between(
    observed_model: nn.Module,
    updated_model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Texts | Encoded,
    *,
    parameters: str | ParameterSelection = "all",
    top_k: int = 10,
    tokens: Tokens | None = None,
    template: str | Template = "auto",
    max_length: int | None = None,
    keep_blocks: bool = False,
    batch_size: int = 32,
) -> KernelMeasurement:
    """Measure what the gradients of one checkpoint have in common with those of another.

    Columns are updates computed at θ_s, rows the logits that these would move at θ_t. Between a
    model and itself it is its kernel.

    Args:
        observed_model: the model of the rows, at θ_t.
        updated_model: the model of the columns, at θ_s, of the same parameters.
        tokenizer: the tokenizer of both.
        prompts: what to measure on.
        parameters: which parameters the kernel is over, in the grammar of `--parameters`.
        top_k: size of the block: each prompt's k most probable next tokens, by the updated model.
        tokens: the tokens of the blocks instead: `[k]` for all prompts, or `[n, k]`.
        template: how prompts become tokens.
        max_length: longer prompts lose the end of their text.
        keep_blocks: whether to keep the blocks, `n² k²` numbers.
        batch_size: of the forward pass that finds the top tokens.

    Returns:
        The norms of all blocks, `[n, n]`, rows by the observed model; both models read the same
        tokens. A model or prompt that cannot be measured, an unknown selection, a `top_k` that is
        not 1 or more and at most the size of the vocabulary, and models whose parameters have
        different names or shapes are each a `UserError`.
    """
    for model in (observed_model, updated_model):
        check_loaded(model)
    encoded = as_encoded(tokenizer, prompts, template, max_length)
    readout = Readout(top_k, tokens, batch_size=batch_size)
    selection = ParameterSelection.parse(parameters)
    ids = [torch.tensor(row) for row in encoded.input_ids]
    with evaluating(observed_model), evaluating(updated_model):
        read = tokens_read(updated_model, ids, readout)
        check_logits(observed_model, ids, batch_size)
        probes = [Probe(row, tokens=block) for row, block in zip(ids, read, strict=True)]
        found = Gram().between(observed_model, probes, updated_model, probes, selection)
    settings = {
        "estimator": "between two models, Gram()",
        "parameters": str(selection),
        "reads": readout.name,
        **encoded.record,
    }
    blocks = found.float().cpu() if keep_blocks else None
    norms = kernel.norms(found).cpu()
    texts = token_texts(tokenizer, read)
    return KernelMeasurement(
        encoded.prompts, norms, read.cpu(), blocks=blocks, texts=texts, settings=settings
    )
