"""What the contrastive loss looks at: pooled outputs of block L, over all processes and batches.

One optimiser step in several batches (`Window`) has the pairs of one large batch. The features of
all batches are computed first, without a graph; then each batch, with its graph, is paired with the
features of all others. As the loss sees the batches only through their features, the gradients add
up to the large batch's (Gao et al. 2021, arXiv:2101.06983, section 3.2).
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import UserError
from ..models.architecture import decoder_layers
from ..models.parameters import effective_parameters, part_of
from .data import IGNORED


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


Features = tuple[Tensor, Tensor]
"""Features [prompts, width] and groups [prompts] of a batch, over all processes."""


class Window:
    """The batches of one optimiser step; of one batch alone it adds nothing and costs nothing."""

    def __init__(self, batches: Sequence[dict[str, Any]]) -> None:
        self.batches = batches
        self.position = 0
        self._known: list[Features] = []
        self._seeds: list[int] = []

    @property
    def used_up(self) -> bool:
        """Whether every batch has had its turn."""
        return self.position == len(self.batches)

    @property
    def predicted(self) -> Tensor:
        """The number of tokens with a label in all batches of this process."""
        return sum((batch["labels"][:, 1:] != IGNORED).sum() for batch in self.batches)

    def look_ahead(self, features: Callable[[dict[str, Any]], Features]) -> None:
        """Compute the features of all batches, before the first of several has its turn.

        Args:
            features: what a batch gives.
        """
        if len(self.batches) == 1 or self._known:
            return
        self._seeds = torch.randint(2**62, (len(self.batches),)).tolist()
        with torch.no_grad():
            for batch, seed in zip(self.batches, self._seeds, strict=True):
                with _seeded(seed):
                    self._known.append(features(batch))
        torch.clear_autocast_cache()  # else its copies of the weights have no graph from now on

    @contextmanager
    def turn(self) -> Generator[None]:
        """Give the next batch its turn, with the dropout that it was looked at with.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            if self._known:
                stack.enter_context(_seeded(self._seeds[self.position]))
            yield
        self.position += 1

    def joined(self, features: Tensor, groups: Tensor) -> Features:
        """Return the rows of all batches, of which only this batch's carry gradient.

        That is multiplied by the number of batches, because the Trainer divides the loss by it.

        Args:
            features: of the batch whose turn was last [prompts, width].
            groups: of the same [prompts].

        Returns:
            Features and groups of all prompts, first batch first.
        """
        if not self._known:
            return features, groups
        mine = features + (len(self._known) - 1) * (features - features.detach())
        rows = [known for known, _ in self._known]
        rows[self.position - 1] = mine
        return torch.cat(rows), torch.cat([sides for _, sides in self._known])


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Draw random numbers from a stream of the block's own, here and on the GPU in use.

    Args:
        seed: of the stream.

    Yields:
        Nothing.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
