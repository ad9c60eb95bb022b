"""The kernel of the head's input as a sum over groups of blocks, each computed once and stored.

A kernel is the sum of those over the parts of its parameters. Each group takes its own backward
passes, down to its first block; the products of gradients, which take most of the time, are divided
among the groups.
"""

from collections.abc import Sequence
from functools import partial
from hashlib import sha256

from jaxtyping import Int
from torch import Tensor, nn

from ...kernel import Blocks, Estimator
from ...models.parameters import effective_parameters, part_of
from ..full_vocabulary import hidden_kernels
from ..stored_parts import StoredParts

BLOCKS_AT_A_TIME = 4
OUTSIDE = -1
"""The group of the parameters outside the blocks."""


def hidden_kernels_by_blocks(
    parts: StoredParts,
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    chosen: Sequence[dict[str, nn.Parameter]],
    estimator: Estimator,
) -> list[Blocks]:
    """Return K_h, `[n, d, n, d]`, over each selection's parameters, as `hidden_kernels` does.

    Args:
        parts: keep the kernel over each group of blocks; with other selections, others.
        model: the model.
        prompts: token ids of each prompt, nothing padded.
        chosen: the parameters of each selection.
        estimator: what computes K_h.
    """
    ids = sha256(repr([row.tolist() for row in prompts]).encode()).hexdigest()[:12]
    groups = group_of(model)
    total: dict[str, Tensor] = {}
    for group in sorted({groups.get(id(p), OUTSIDE) for each in chosen for p in each.values()}):
        selected = [
            {name: p for name, p in each.items() if groups.get(id(p), OUTSIDE) == group}
            for each in chosen
        ]
        compute = partial(_named_kernels, model, prompts, selected, estimator)
        for name, kernel in parts.get(f"kernel-{ids}-{group}", compute).items():
            total[name] = total[name] + kernel if name in total else kernel
    return [total[str(number)] for number in range(len(chosen))]


def group_of(model: nn.Module) -> dict[int, int]:
    """Return the group of every base parameter, by its id: that of its block, or `OUTSIDE`."""
    parts, parameters = part_of(model), effective_parameters(model)
    return {
        id(parameters[name]): (part.layer - 1) // BLOCKS_AT_A_TIME if part.layer else OUTSIDE
        for name, part in parts.items()
    }


def _named_kernels(
    model: nn.Module,
    prompts: Sequence[Int[Tensor, " _"]],
    chosen: Sequence[dict[str, nn.Parameter]],
    estimator: Estimator,
) -> dict[str, Tensor]:
    found = hidden_kernels(model, prompts, chosen, estimator)
    return {str(number): kernel for number, kernel in enumerate(found)}
