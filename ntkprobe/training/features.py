"""What the contrastive loss looks at: pooled outputs of block L, over all processes."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import UserError
from ..models.architecture import decoder_layers
from ..models.parameters import effective_parameters, part_of


def pool(states: Tensor, ends: Tensor, pooling: str) -> Tensor:
    """Return one vector for each prompt.

    Args:
        states: a block's output [prompts, positions, width]; prompts begin at position 0.
        ends: the number of tokens of each prompt [prompts]; what follows is padding or an answer.
        pooling: `last`, the state at the prompt's last token, where the answer's first token is
            predicted (A.6); or `mean`, over all the prompt's tokens.

    Returns:
        Features [prompts, width].
    """
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), ends - 1]
    inside = torch.arange(states.shape[1], device=states.device) < ends[:, None]
    return (states * inside[..., None]).sum(1) / ends[:, None]


def gathered(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the rows of all processes, in one order for all.

    Only a process's own rows carry gradient, multiplied by the number of processes because
    DistributedDataParallel averages: the update is that of one process with the whole batch.

    Args:
        rows: as many on every process.
        accelerator: of the training.

    Returns:
        All rows, first process first.
    """
    processes, mine = accelerator.num_processes, accelerator.process_index * len(rows)
    if processes == 1:
        return rows
    everyone: Tensor = accelerator.gather(rows.detach())
    own = rows + (processes - 1) * (rows - rows.detach()) if rows.requires_grad else rows
    return torch.cat([everyone[:mine], own, everyone[mine + len(rows) :]])


@contextmanager
def without_blocks_above(model: nn.Module, layer: int) -> Generator[None]:
    """Take the blocks above `layer` out of the model for as long as the block lasts.

    Args:
        model: a causal language model.
        layer: the last block to run, counted from 1.

    Yields:
        Nothing. What the model computes after that block means nothing meanwhile.
    """
    first = decoder_layers(model)[0]
    holder, name = next(
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) and child[0] is first
    )
    blocks = getattr(holder, name)
    setattr(holder, name, blocks[:layer])
    try:
        yield
    finally:
        setattr(holder, name, blocks)


def freeze_above(model: nn.Module, layer: int) -> tuple[int, int, bool]:
    """Freeze what runs after block `layer`: later blocks, final norm, head; train all before it.

    An embedding that is tied to the head is the head, and is frozen with it.

    Args:
        model: a causal language model.
        layer: the last trained block, counted from 1.

    Returns:
        Numbers of trained and of frozen parameters, and whether the embedding was frozen as tied.

    Raises:
        UserError: if there is no such block.
    """
    blocks = decoder_layers(model)
    if not 1 <= layer <= len(blocks):
        raise UserError(
            f"layer {layer} does not exist: {type(model).__name__} has blocks 1 to {len(blocks)}"
        )
    parts, sizes = part_of(model), {True: 0, False: 0}
    for name, parameter in effective_parameters(model).items():
        part = parts[name]
        trained = part.kind == "embed" or 1 <= (part.layer or 0) <= layer
        parameter.requires_grad_(trained)
        sizes[trained] += parameter.numel()
    tied = any(part.kind == "embed+head" for part in parts.values())
    return sizes[True], sizes[False], tied
