"""The kernel of the head's input, computed once and stored; when stopped it goes on at a block."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256

from jaxtyping import Int
from torch import Tensor, nn

from ...estimators.gram import Gram
from ...kernel import Blocks, Estimator
from ..full_vocabulary import hidden_kernels
from ..stored_parts import StoredParts


def stored_hidden_kernels(
    parts: StoredParts,
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    chosen: Sequence[dict[str, nn.Parameter]],
    estimator: Estimator,
) -> list[Blocks]:
    """Return K_h, `[n, d, n, d]`, over each selection's parameters, as `hidden_kernels` does.

    Args:
        parts: keep the kernels, and while they are computed the state of the backward pass; with
            other selections, others.
        model: the model.
        prompts: token ids of each prompt, nothing padded.
        chosen: the parameters of each selection.
        estimator: what computes K_h.
    """
    name = f"kernel-{sha256(repr([row.tolist() for row in prompts]).encode()).hexdigest()[:12]}"
    if isinstance(estimator, Gram):
        estimator = replace(estimator, state_file=parts.folder / f"{name}.state")
    found = parts.get(name, partial(_named_kernels, model, prompts, chosen, estimator))
    return [found[str(number)] for number in range(len(chosen))]


def _named_kernels(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    chosen: Sequence[dict[str, nn.Parameter]],
    estimator: Estimator,
) -> dict[str, Tensor]:
    found = hidden_kernels(model, prompts, chosen, estimator)
    return {str(number): kernel for number, kernel in enumerate(found)}
